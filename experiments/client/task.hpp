// A coroutine that runs when another one awaits it, or when it is resumed by hand.
#pragma once

#include <coroutine>
#include <exception>
#include <utility>

namespace c10k {

/// What the promises of all tasks have in common.
class TaskPromise {
 public:
  std::suspend_always initial_suspend() noexcept { return {}; }
  auto final_suspend() noexcept {
    struct Awaiter : std::suspend_always {
      std::coroutine_handle<> next;
      std::coroutine_handle<> await_suspend(std::coroutine_handle<>) noexcept { return next; }
    };
    return Awaiter{{}, awaiting_ ? awaiting_ : std::noop_coroutine()};
  }
  /// As long as nobody has been suspended for its end, the task runs within a call of resume(), and
  /// that call throws: into the coroutine that awaits it, or out of the event loop.
  void unhandled_exception() {
    if (!awaiting_) throw;
    error_ = std::current_exception();
  }

  void resume_at_end(std::coroutine_handle<> awaiting) { awaiting_ = awaiting; }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::coroutine_handle<> awaiting_;
  std::exception_ptr error_;
};

template <typename Value>
class ValuePromise : public TaskPromise {
 public:
  void return_value(Value value) { value_ = std::move(value); }
  Value take() { return std::move(value_); }

 private:
  Value value_{};
};

template <>
class ValuePromise<void> : public TaskPromise {
 public:
  void return_void() {}
  void take() {}
};

/// Owns a coroutine's frame, and with it what the coroutine has on its stack: destroying the task
/// ends the coroutine where it is suspended, and first the tasks that it awaits.
///
/// An awaited task first runs as a plain call does. Only when it suspends does the awaiting one: so a
/// loop over tasks that never wait needs no more stack than a loop over functions, with a compiler
/// that makes no tail calls, too.
template <typename Value>
class [[nodiscard]] Task {
 public:
  struct promise_type : ValuePromise<Value> {
    Task get_return_object() {
      return Task(std::coroutine_handle<promise_type>::from_promise(*this));
    }
  };

  Task(Task&& other) noexcept : frame_(std::exchange(other.frame_, {})) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (frame_) frame_.destroy();
  }

  /// The coroutine that nobody awaits: for who resumes it when what it waits for has come.
  [[nodiscard]] std::coroutine_handle<> handle() const { return frame_; }

  bool await_ready() {
    frame_.resume();
    return frame_.done();
  }
  void await_suspend(std::coroutine_handle<> awaiting) { frame_.promise().resume_at_end(awaiting); }
  Value await_resume() {
    frame_.promise().rethrow();
    return frame_.promise().take();
  }

 private:
  explicit Task(std::coroutine_handle<promise_type> frame) : frame_(frame) {}

  std::coroutine_handle<promise_type> frame_;
};

}  // namespace c10k
