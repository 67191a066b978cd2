// How connections come from a source into a worker over its loop.
#pragma once

#include <functional>

#include "ipc/handoff.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

class Intake {
 public:
  virtual ~Intake() = default;
  /// As ConnectionSource::receive().
  virtual ReceiveResult receive(std::span<Received> batch) = 0;
  virtual void pause() = 0;
  virtual void resume() = 0;
  /// No more. What has been taken out of the source by then is still to be received: `arrived` is
  /// called for it, and for the end, unless ended() is true at once.
  virtual void stop() = 0;
  [[nodiscard]] virtual bool ended() const = 0;
};

/// Waits until the source is readable.
class ReadinessIntake : public Intake, public EventHandler {
 public:
  /// Calls `arrived` as long as receive() has something to do. Loop and source outlive the intake, or
  /// the source ends once the intake has ended.
  ReadinessIntake(Loop& loop, ConnectionSource& source, std::function<void()> arrived);

  ReceiveResult receive(std::span<Received> batch) override { return source_.receive(batch); }
  void pause() override { change(false); }
  void resume() override { change(true); }
  void stop() override;
  [[nodiscard]] bool ended() const override { return ended_; }
  void on_ready(Readiness) override { arrived_(); }

 private:
  [[nodiscard]] Interest interest(bool read) const {
    return {.read = read, .level = true, .exclusive = source_.exclusive_wake_up()};
  }

  /// The source's second descriptor, where it has one.
  class Attention : public EventHandler {
   public:
    explicit Attention(ReadinessIntake& intake) : intake_(intake) {}
    void on_ready(Readiness) override {
      intake_.source_.attend();
      intake_.arrived_();
    }

   private:
    ReadinessIntake& intake_;
  };

  void change(bool read);

  Loop& loop_;
  ConnectionSource& source_;
  std::function<void()> arrived_;
  Attention attention_{*this};
  bool ended_ = false;
};

}  // namespace c10k
