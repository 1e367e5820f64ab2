// AMX emulated by AVX-512, for tests on machines without it (HEADWISE_EMULATE_AMX): takes the place of
// base/amx_permission.cc in headwise::testing. Each tile instruction raises SIGILL, whose handler decodes the
// instruction and computes what AMX would have computed, so tests run the shipped instructions to the last byte.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>

#include "base/amx_permission.h"

namespace headwise {
namespace {

struct alignas(64) Tile {
  std::uint32_t row[16][16];
};

// The operand of LDTILECFG.
struct Configuration {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(Configuration) == 64);

thread_local Tile tiles[8];
thread_local bool configured = false;

__attribute__((target("avx512f"))) __m512 FirstHalves(__m512i words) {
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, words, 16));
}
__attribute__((target("avx512f"))) __m512 SecondHalves(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536)));
}

// C += A B. Products of the lower and of the upper halves of the words are summed separately, each with one rounding,
// and subnormal numbers count as 0 (Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS).
__attribute__((target("avx512f"))) void MultiplyAdd(Tile& c, const Tile& a, const Tile& b) {
  const unsigned state = _mm_getcsr();
  _mm_setcsr(0x9FC0);  // every exception masked; subnormal numbers, in and out, are 0
  for (int m = 0; m < 16; ++m) {
    __m512 first = _mm512_setzero_ps(), second = first;
    for (int k = 0; k < 16; ++k) {
      const __m512i b_k = _mm512_load_si512(b.row[k]);
      const __m512i a_mk = _mm512_set1_epi32(static_cast<int>(a.row[m][k]));
      first = _mm512_fmadd_ps(FirstHalves(a_mk), FirstHalves(b_k), first);
      second = _mm512_fmadd_ps(SecondHalves(a_mk), SecondHalves(b_k), second);
    }
    const __m512 sum = _mm512_add_ps(_mm512_load_ps(c.row[m]), _mm512_add_ps(first, second));
    _mm512_store_ps(c.row[m], sum);
  }
  _mm_setcsr(state);
}

enum class Kind { kIdle, kTiles };
enum Prefix { kNone, k66, kF3, kF2 };

struct Instruction {
  Kind kind;
  int prefix, opcode;
  int reg, rm, vvvv;   // the registers of ModRM and VEX
  bool in_memory;      // rm is not one
  char* base;          // with the displacement
  std::int64_t index;  // times its scale
  int bytes;
};

// Decodes the operands given by the ModRM byte at code[to.bytes] (the manual, volume 2, 2.1). r, x and b: the fourth
// bits of the register numbers.
bool DecodeOperands(const greg_t* registers, const std::uint8_t* code, int r, int x, int b, Instruction& to) {
  constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  const int modrm = code[to.bytes++], mod = modrm >> 6;
  to.reg = (modrm >> 3 & 7) | r;
  to.rm = (modrm & 7) | b;
  to.in_memory = mod != 3;
  if (!to.in_memory) return true;

  int base_register = modrm & 7;
  if (base_register == 5 && mod == 0) return false;  // RIP-relative, which tile instructions do not use
  if (base_register == 4) {                          // base, index and scale follow
    const int sib = code[to.bytes++], index = (sib >> 3 & 7) | x;
    base_register = sib & 7;
    if (index != 4) to.index = registers[kRegisters[index]] * (1 << (sib >> 6));
  }
  const bool no_base = base_register == 5 && mod == 0;
  std::int64_t base = no_base ? 0 : registers[kRegisters[base_register | b]];
  if (mod == 1) {
    base += static_cast<std::int8_t>(code[to.bytes++]);
  } else if (mod == 2 || no_base) {
    std::int32_t displacement;
    std::memcpy(&displacement, code + to.bytes, 4);
    base += displacement;
    to.bytes += 4;
  }
  to.base = reinterpret_cast<char*>(base);
  return true;
}

// Decodes tile instructions: a three-byte VEX prefix, opcodes 0F 38 (the manual, volume 2, 2.3). NOP and PREFETCHT0
// between them are decoded as well, because a signal per tile instruction takes longer.
bool Decode(const greg_t* registers, Instruction& to) {
  const auto* const code = reinterpret_cast<const std::uint8_t*>(registers[REG_RIP]);
  to = {};
  if (code[0] == 0xC4 && (code[1] & 0x1F) == 2 && (code[2] & 0x84) == 0) {
    to.kind = Kind::kTiles;
    to.prefix = code[2] & 3;
    to.vvvv = ~(code[2] >> 3) & 15;
    to.opcode = code[3];
    to.bytes = 4;
    return DecodeOperands(registers, code, code[1] & 0x80 ? 0 : 8, code[1] & 0x40 ? 0 : 8, code[1] & 0x20 ? 0 : 8, to);
  }
  to.kind = Kind::kIdle;
  if (code[0] == 0x90) {
    to.bytes = 1;
    return true;
  }
  const int rex = (code[0] & 0xF0) == 0x40 ? code[0] : 0;
  const std::uint8_t* const opcode = code + (rex != 0);
  if (opcode[0] != 0x0F || opcode[1] != 0x18) return false;
  to.bytes = rex ? 3 : 2;
  return DecodeOperands(registers, code, rex & 4 ? 8 : 0, rex & 2 ? 8 : 0, rex & 1 ? 8 : 0, to);
}

// False for a configuration that the processor would refuse, and for tiles of other sizes than headwise uses.
bool Configure(const char* from) {
  Configuration to{};
  std::memcpy(&to, from, sizeof(to));
  if (to.palette != 1 || to.start_row != 0) return false;
  for (int tile = 0; tile < 8; ++tile) {
    if (to.row_bytes[tile] != 64 || to.rows[tile] != 16) return false;
  }
  std::memset(tiles, 0, sizeof(tiles));
  return configured = true;
}

bool Execute(const Instruction& now) {
  if (now.kind == Kind::kIdle) return true;
  if (now.opcode == 0x49 && now.prefix == kNone && now.reg == 0) {
    if (now.in_memory) return Configure(now.base + now.index);  // LDTILECFG
    configured = false;                                         // TILERELEASE
    return true;
  }
  if (!configured || now.reg > 7) return false;
  Tile& tile = tiles[now.reg];
  if (now.opcode == 0x49 && now.prefix == kF2 && !now.in_memory) {  // TILEZERO
    std::memset(&tile, 0, sizeof(tile));
  } else if (now.opcode == 0x4B && now.prefix == kF2 && now.in_memory) {  // TILELOADD
    for (int i = 0; i < 16; ++i) std::memcpy(tile.row[i], now.base + i * now.index, 64);
  } else if (now.opcode == 0x4B && now.prefix == kF3 && now.in_memory) {  // TILESTORED
    for (int i = 0; i < 16; ++i) std::memcpy(now.base + i * now.index, tile.row[i], 64);
  } else if (now.opcode == 0x5C && now.prefix == kF3 && !now.in_memory) {  // TDPBF16PS
    if (now.rm > 7 || now.vvvv > 7 || now.reg == now.rm || now.reg == now.vvvv || now.rm == now.vvvv) return false;
    MultiplyAdd(tile, tiles[now.rm], tiles[now.vvvv]);
  } else {
    return false;
  }
  return true;
}

// Executes the instruction that raised the signal, and the following ones as far as they can be decoded. An instruction
// that is not for tiles, or that AMX would refuse, ends the process, as it would without the handler.
void Handle(int, siginfo_t*, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  bool executed = false;
  for (Instruction now{}; Decode(registers, now); registers[REG_RIP] += now.bytes) {
    if (!Execute(now)) break;
    executed = true;
  }
  if (!executed) signal(SIGILL, SIG_DFL);
}

}  // namespace

bool HasAmx() { return true; }

// Installs the handler, for the rest of the process.
bool RequestAmxPermission() {
  struct sigaction action = {};
  action.sa_sigaction = &Handle;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace headwise
