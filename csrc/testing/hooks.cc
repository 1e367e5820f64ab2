#include "testing/hooks.h"

#include <atomic>

namespace headwise::testing {
namespace {

std::atomic<bool> bf16_for_any_shape{false};
std::atomic<bool> threads_for_any_work{false};
std::atomic<bool> check_at_every_question{false};

}  // namespace

bool Bf16ForAnyShape() { return bf16_for_any_shape.load(std::memory_order_relaxed); }
void SetBf16ForAnyShape(bool on) { bf16_for_any_shape.store(on); }

bool ThreadsForAnyWork() { return threads_for_any_work.load(std::memory_order_relaxed); }
void SetThreadsForAnyWork(bool on) { threads_for_any_work.store(on); }

bool CheckAtEveryQuestion() { return check_at_every_question.load(std::memory_order_relaxed); }
void SetCheckAtEveryQuestion(bool on) { check_at_every_question.store(on); }

}  // namespace headwise::testing
