"""Checks that no function of the built library uses an instruction above its own instruction set.

    python .ci/support/instructions.py libheadwise.a  # or the extension, with its symbols

A function's namespace names its instruction set: `headwise::N_AVX2::…`; functions outside such a namespace run before
the processor's features are known. An inline function of a header can break this without a warning: each kernel file is
compiled for all sets, and the linker keeps one copy of the function.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

# Mnemonics that the x86-64 baseline lacks, by the functions that may use them. `tzcnt` is not listed: compilers emit it
# for `bsf`, and older processors execute it as such.
BEYOND = {
    "sse4": re.compile(
        r"addsub[ps]|h(add|sub)p|lddqu|mov(d|sl|sh)dup|p(abs|sign)[bwd]|ph(add|sub)|palignr|pshufb|pmulhrsw|pmaddubsw"
        r"|p?blend|dpp[sd]|(extract|insert)ps|movntdqa|mpsadbw|packusdw|p(cmpeq|cmpgt)q|pcmp[ei]str|p(extr|insr)[bdq]"
        r"|phminposuw|p(max|min)([us]d|sb|uw)|pmov[sz]x|pmul(dq|ld)|ptest|round[ps][sd]|crc32|popcnt|aes|pclmul"
    ),
    "avx2": re.compile(r"v(?!er[rw])|andn\b|bextr|bls[ir]|blsmsk|bzhi|mulx|p(dep|ext)\b|rorx|s(ar|hl|hr)x|lzcnt|movbe"),
    "avx512": re.compile(r"k\w+ |.*(%zmm|%[xy]mm(1[6-9]|[23]\d)|\{%k)"),
    "bf16 dot": re.compile(r"vdpbf16ps"),
    "AMX": re.compile(r"(ld|st)tilecfg|tile|tdp"),
    "after CPUID": re.compile(r"ad[co]x|cmpxchg16b|clflushopt|clwb|rdrand|rdseed|sha(1|256)|xgetbv|xsave"),
}  # fmt: skip
LEVELS = ("baseline", "sse4", "avx2", "avx512")
SETS = {"6N_SSE4": "sse4", "6N_AVX2": "avx2", "6N_AVX3": "avx512"}
SPECIAL = {  # by the prefix of the mangled name
    r"_ZN8headwise3amx": "AMX",
    r"_ZN8headwise6HasAmxEv": "after CPUID",  # xgetbv, if CPUID reports it
}
FUNCTION = re.compile(r"[0-9a-f]+ <(.+)>:$")
OF_A_SET = re.compile(r"_ZZ*N?[KVR]*(?:8headwise|3hwy)(\d+N_(?:SSE4|AVX2|AVX3))")
PREFIXES = re.compile(r"^(?:(?:lock|rep[nz]*|data16|cs|ds|notrack|bnd|\{\w+\})\s+)+")


def allowed(symbol: str) -> tuple[str, ...]:
    named = OF_A_SET.match(symbol)
    level = SETS[named[1]] if named else "baseline"
    special = tuple(right for start, right in SPECIAL.items() if re.match(start, symbol))
    return (*LEVELS[1 : LEVELS.index(level) + 1], *(("bf16 dot", "AMX") if level == "avx512" else ()), *special)


def beyond(instruction: str) -> list[str]:
    text = PREFIXES.sub("", instruction)
    return [name for name, mnemonics in BEYOND.items() if mnemonics.match(text)]


def main(path: str) -> None:
    command = ["objdump", "--disassemble", "--no-show-raw-insn", path]
    functions: Counter[str] = Counter()
    used: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    symbol, rights = "", ()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as objdump:
        for line in objdump.stdout or ():
            if heading := FUNCTION.match(line):
                symbol, rights = heading[1], allowed(heading[1])
                functions[next((level for level in reversed(LEVELS) if level in rights), "baseline")] += 1
            elif "\t" in line:
                instruction = line.split("\t", 1)[1].strip()
                for name in beyond(instruction):
                    used[name] += 1
                    if name not in rights:
                        wrong.setdefault(symbol, instruction)
    print(f"functions: {dict(functions)}; instructions above the baseline: {dict(used)}")
    if wrong:
        names = subprocess.run(["c++filt"], input="\n".join(wrong), capture_output=True, text=True, check=True).stdout
        listed = "\n".join(f"  {name}: {line}" for name, line in zip(names.splitlines(), wrong.values(), strict=True))
        raise SystemExit(f"{path}: {len(wrong)} functions use instructions above their instruction set\n{listed}")
    if objdump.returncode or set(functions) != set(LEVELS) or set(used) != set(BEYOND):
        raise SystemExit(f"{path}: expected functions and instructions of each set; is it stripped?")


if __name__ == "__main__":
    main(sys.argv[1])
