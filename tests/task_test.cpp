// Tests of the coroutines of the client: who runs when, whose exception goes where, what is destroyed.
#include "experiments/client/task.hpp"

#include <gtest/gtest.h>

#include <coroutine>
#include <stdexcept>
#include <string>
#include <vector>

namespace c10k {
namespace {

/// What a coroutine waits for; the test resumes it.
class Gate {
 public:
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> coroutine) noexcept { waiting_ = coroutine; }
  void await_resume() const noexcept {}
  void open() { waiting_.resume(); }

 private:
  std::coroutine_handle<> waiting_;
};

struct Note {
  std::vector<std::string>& notes;
  std::string text;
  ~Note() { notes.push_back(text); }
};

Task<int> at_once(int value) {
  co_return value;
}

Task<int> after(Gate& gate, int value) {
  co_await gate;
  co_return value;
}

Task<int> fails_after(Gate& gate) {
  co_await gate;
  throw std::runtime_error("after");
}

Task<int> fails_at_once() {
  throw std::runtime_error("at once");
  co_return 0;
}

TEST(Task, RunsWhenItIsResumedAndNoSooner) {
  int result = 0;
  const auto body = [&result]() -> Task<void> { result = co_await at_once(7); };
  const Task<void> task = body();
  EXPECT_EQ(result, 0);
  task.handle().resume();
  EXPECT_EQ(result, 7);
  EXPECT_TRUE(task.handle().done());
}

TEST(Task, GoesOnWhereItWaited) {
  Gate first;
  Gate second;
  int sum = 0;
  const auto body = [&]() -> Task<void> {
    sum += co_await after(first, 1);
    sum += co_await after(second, 10);
  };
  const Task<void> task = body();
  task.handle().resume();
  EXPECT_EQ(sum, 0);
  first.open();
  EXPECT_EQ(sum, 1);
  EXPECT_FALSE(task.handle().done());
  second.open();
  EXPECT_EQ(sum, 11);
  EXPECT_TRUE(task.handle().done());
}

TEST(Task, AnExceptionReachesWhoAwaits) {
  Gate gate;
  std::vector<std::string> caught;
  const auto body = [&]() -> Task<void> {
    try {
      (void)co_await fails_at_once();
    } catch (const std::runtime_error& error) {
      caught.emplace_back(error.what());
    }
    try {
      (void)co_await fails_after(gate);
    } catch (const std::runtime_error& error) {
      caught.emplace_back(error.what());
    }
  };
  const Task<void> task = body();
  task.handle().resume();
  EXPECT_EQ(caught, std::vector<std::string>{"at once"});
  gate.open();
  EXPECT_EQ(caught, (std::vector<std::string>{"at once", "after"}));
  EXPECT_TRUE(task.handle().done());
}

TEST(Task, AnExceptionThatNobodyCatchesReachesWhoResumes) {
  Gate gate;
  std::vector<std::string> notes;
  {
    const auto body = [&]() -> Task<void> {
      const Note note{notes, "outer"};
      (void)co_await fails_after(gate);
    };
    const Task<void> task = body();
    task.handle().resume();
    EXPECT_THROW(gate.open(), std::runtime_error);
    EXPECT_TRUE(task.handle().done());
  }
  EXPECT_EQ(notes, std::vector<std::string>{"outer"});

  const auto fails_first = []() -> Task<void> { (void)co_await fails_at_once(); };
  const Task<void> task = fails_first();
  EXPECT_THROW(task.handle().resume(), std::runtime_error);
}

TEST(Task, IsDestroyedWhereItWaitsInnermostFirst) {
  Gate gate;
  std::vector<std::string> notes;
  {
    const auto inner = [&]() -> Task<int> {
      const Note note{notes, "inner"};
      co_await gate;
      co_return 0;
    };
    const auto outer = [&]() -> Task<void> {
      const Note note{notes, "outer"};
      (void)co_await inner();
    };
    const Task<void> waiting = outer();
    waiting.handle().resume();
    const Task<void> never_begun = outer();
    EXPECT_TRUE(notes.empty());
  }
  EXPECT_EQ(notes, (std::vector<std::string>{"inner", "outer"}));
}

// A million nested resumptions would need more than the 8 MiB of a stack.
TEST(Task, ALoopThatNeverWaitsNeedsNoStack) {
  Gate gate;
  long sum = 0;
  const auto body = [&]() -> Task<void> {
    for (int i = 0; i < 1'000'000; ++i) sum += co_await at_once(1);
    sum += co_await after(gate, 1);
    for (int i = 0; i < 1'000'000; ++i) sum += co_await at_once(1);
  };
  const Task<void> task = body();
  task.handle().resume();
  EXPECT_EQ(sum, 1'000'000);
  gate.open();
  EXPECT_EQ(sum, 2'000'001);
}

}  // namespace
}  // namespace c10k
