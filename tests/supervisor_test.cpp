// Workers that do not start: the supervisor's deadline for being ready.
//
// Over one way of handing over, as the supervisor does not ask which it is.
#include "acceptor/supervisor.hpp"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "acceptor/server_options.hpp"
#include "tests/support.hpp"

namespace c10k::testing {
namespace {

/// A link whose worker stands still on its way to being ready while its slot is held.
class HeldLink : public Link {
 public:
  HeldLink(std::unique_ptr<Link> link, const Counter& held) : link_(std::move(link)), held_(held) {}
  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    return link_->acceptor_end(worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    if (held_.get() != 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // it will not see the end of a test that is killed
      while (true) ::pause();
    }
    return link_->worker_end();
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return link_->worker_descriptors();
  }
  void leave_to_worker(OwnedFd fd) override { link_->leave_to_worker(std::move(fd)); }

 private:
  std::unique_ptr<Link> link_;
  const Counter& held_;
};

class HeldMethod : public HandoffMethod {
 public:
  HeldMethod(std::unique_ptr<HandoffMethod> method, SharedArray<Counter>& held)
      : method_(std::move(method)), held_(held) {}
  Support probe() override { return method_->probe(); }
  std::unique_ptr<Link> open(const LinkRequest& request) override {
    return std::make_unique<HeldLink>(method_->open(request), held_[request.worker]);
  }

 private:
  std::unique_ptr<HandoffMethod> method_;
  SharedArray<Counter>& held_;
};

constexpr std::int64_t short_deadline_ns = 100'000'000;

class StartOfWorkers : public ::testing::Test {
 protected:
  StartOfWorkers() : held_(2) {
    options_.workers = 2;
    options_.loop = &find_loop("epoll");
    options_.worker_deadline_ns = 20'000'000;
    options_.method = configure_handoff_method("scm-seqpacket");
    options_.method.method = std::make_unique<HeldMethod>(std::move(options_.method.method), held_);
  }
  void TearDown() override { EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a child is left"; }

  /// Of a supervisor whose workers have nothing to do.
  [[nodiscard]] Supervisor::Hooks hooks() {
    return {.started = [](WorkerProcess&) {},
            .ready = [](WorkerProcess&) {},
            .ended = [](WorkerProcess&) {},
            .may_have_work = [](const WorkerProcess&) { return false; },
            .all_ended = [this] { loop_.stop(); }};
  }

  ServerOptions options_;
  SharedArray<Counter> held_;
  EventLoop loop_{epoll_poller()};
};

TEST_F(StartOfWorkers, OneThatIsNotReadyAtFirstIsAnError) {
  held_[1].set(1);
  options_.start_deadline_ns = short_deadline_ns;
  Supervisor supervisor(loop_, options_, -1, hooks());
  supervisor.start();
  try {
    loop_.run();
    FAIL() << "the loop ended without a word";
  } catch (const std::exception& error) {
    EXPECT_STREQ(error.what(), "a worker was not ready after 0.1 s");
  }
}

TEST_F(StartOfWorkers, ASuccessorThatIsNeverReadyIsKilledAndReplaced) {
  Supervisor* all = nullptr;
  std::vector<std::int64_t> started_ns;  // of slot 0
  int ended = 0;
  bool replaced = false;
  Supervisor::Hooks hooks = this->hooks();
  hooks.started = [&](WorkerProcess& worker) {
    if (worker.slot != 0) return;
    started_ns.push_back(worker.started_ns);
    EXPECT_EQ(all->degraded(), started_ns.size() == 1
                                   ? "worker 0 is not ready yet, worker 1 waits to be replaced"
                                   : "worker 0 is not ready yet");
  };
  hooks.ready = [&](WorkerProcess& worker) {
    if (started_ns.size() == 1 && all->all_ready()) {
      EXPECT_EQ(all->degraded(), "");
      held_[0].set(1);  // its successor
      options_.start_deadline_ns = short_deadline_ns;
      all->worker(0)->child.signal(SIGKILL);
    } else if (worker.slot == 0 && ended == 2) {
      replaced = true;
      EXPECT_EQ(all->degraded(), "");
      all->stop();
    }
  };
  hooks.ended = [&](WorkerProcess& worker) {
    if (replaced) return;
    EXPECT_EQ(worker.slot, 0U) << "the other one has done nothing wrong";
    if (++ended != 2) return;
    EXPECT_EQ(started_ns.size(), 2U);
    EXPECT_GE(monotonic_ns() - started_ns.back(), short_deadline_ns);
    held_[0].set(0);
    options_.start_deadline_ns = patience_ns;  // a busy machine may start it slowly
  };
  Supervisor supervisor(loop_, options_, -1, std::move(hooks));
  all = &supervisor;
  supervisor.start();
  loop_.after(patience_ns, [this] { loop_.stop(); });
  loop_.run();
  EXPECT_TRUE(replaced) << "it waits for one that never comes";
  EXPECT_EQ(supervisor.deaths(), 2U);
  EXPECT_EQ(supervisor.stuck(), 0U);
}

}  // namespace
}  // namespace c10k::testing
