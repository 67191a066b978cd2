#include "acceptor/hand_on.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "acceptor/upgrade_words.hpp"
#include "ipc/scm.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

constexpr std::string_view the_successor = "the successor";
constexpr std::size_t frame_of = 64;
/// Frames without an answer: then the successor is slow, and more would only fill the socket.
constexpr std::size_t most_frames = 16;
constexpr std::int64_t rest_ns = 10'000'000;

}  // namespace

HandOn::HandOn(Loop& loop, OwnedFd socket, OwnedFd pidfd, Hooks hooks)
    : loop_(loop), socket_(std::move(socket)), pidfd_(std::move(pidfd)), hooks_(std::move(hooks)) {
  loop_.watch(socket_.get(), {.read = true, .level = true}, *this);
  if (pidfd_) loop_.watch(pidfd_.get(), {.read = true, .level = true}, end_watch_);
}

HandOn::~HandOn() {
  if (resting_ != 0) loop_.cancel(resting_);
  let_go();
}

void HandOn::let_go() {
  if (socket_) loop_.forget(socket_.get(), Removal::closing);
  socket_.reset();
  if (pidfd_) loop_.forget(pidfd_.get(), Removal::still_open);
  pidfd_.reset();
}

void HandOn::on_successor_ended() {
  on_ready({.read = true});  // its last words
  if (socket_) end("the successor has ended");
}

void HandOn::listen(bool for_room) {
  if (for_room == full_) return;
  full_ = for_room;
  loop_.change(socket_.get(), {.read = true, .write = full_, .level = true});
}

void HandOn::send(std::deque<Received>& connections) {
  while (socket_ && resting_ == 0 && !full_ && frames_.size() < most_frames &&
         !connections.empty()) {
    std::vector<Handover> frame;
    for (std::size_t i = 0; i < std::min(frame_of, connections.size()); ++i)
      frame.push_back({connections[i].fd.get(), connections[i].tag});
    switch (send_frame(socket_.get(), frame)) {
      case Channel::more:
        break;
      case Channel::would_block:
        return listen(true);
      case Channel::closed:
        return;  // its end is readable
      default:
        return rest();  // too many descriptors in flight, or no memory
    }
    for (std::size_t i = 0; i < frame.size(); ++i) {
      sent_.push_back(std::move(connections.front()));
      connections.pop_front();
    }
    frames_.push_back(frame.size());
  }
}

void HandOn::rest() {
  if (resting_ != 0) return;
  resting_ = loop_.after(rest_ns, [this] {
    resting_ = 0;
    hooks_.moved();
  });
}

void HandOn::on_ready(Readiness ready) {
  try {
    if (ready.write) listen(false);
    bool any = ready.write;
    while (const auto message = hear(socket_.get(), the_successor)) {
      if (message->word != Word::adopted || frames_.empty() || message->first > frames_.front() ||
          message->first + message->second != frames_.front())
        throw std::runtime_error("the successor speaks out of turn");
      const std::size_t count = frames_.front();
      frames_.pop_front();
      std::vector<Received> refused;
      for (std::size_t i = 0; i < count; ++i) {
        if (message->second != 0) refused.push_back(std::move(sent_.front()));
        sent_.pop_front();
      }
      adopted_ += message->first;
      if (!refused.empty()) {
        rest();
        hooks_.returned(std::move(refused), false);
      }
      any = true;
    }
    if (any) hooks_.moved();
  } catch (const std::exception& error) {
    end(error.what());
  }
}

void HandOn::leave() {
  // Nobody waits for the answers any more.
  if (resting_ != 0) loop_.cancel(std::exchange(resting_, 0));
  let_go();
  adopted_ += sent_.size();
  sent_.clear();
  frames_.clear();
}

void HandOn::end(const std::string& why) {
  fmt::print(stderr, "c10k-server: {}: its predecessor serves {} connections on\n", why,
             sent_.size());
  let_go();
  frames_.clear();
  std::vector<Received> ours;
  std::move(sent_.begin(), sent_.end(), std::back_inserter(ours));
  sent_.clear();
  hooks_.returned(std::move(ours), true);
}

}  // namespace c10k
