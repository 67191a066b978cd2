#include "experiments/client/misbehave.hpp"

#include <algorithm>
#include <array>

#include "experiments/client/options.hpp"

namespace c10k {
namespace {

using State = Exchange::State;
using Step = Exchange::Step;

/// 100 a second, where the narrow window lets as much through: 1 MiB takes 2.6 s at least.
constexpr std::size_t piece_size = 4096;

// ---- What several of them do --------------------------------------------------------------------

/// A connection that stands before anything has been sent on it.
Task<Step> connect(CoroutineSlot& slot, bool narrow = false) {
  Step step = slot.open(narrow);
  if (step.state != State::ended) step = slot.connect();
  if (step.state != State::ended) step = co_await slot.ready(true);
  if (step.state != State::ended) step = slot.connected();
  co_return step;
}

Task<Step> send_all(CoroutineSlot& slot) {
  while (true) {
    const Step sent = slot.send();
    if (sent.state == State::ended || slot.exchange().all_sent()) co_return sent;
    const Step ready = co_await slot.ready(true);
    if (ready.state == State::ended) co_return ready;
    const Step received = slot.receive();
    if (received.state == State::ended) co_return received;
  }
}

Task<Step> take_echo(CoroutineSlot& slot) {
  while (true) {
    const Step ready = co_await slot.ready(false);
    if (ready.state == State::ended) co_return ready;
    const Step received = slot.receive();
    if (received.state == State::ended) co_return received;
  }
}

// ---- The misbehaviours --------------------------------------------------------------------------

Task<Step> read_slowly(CoroutineSlot& slot) {
  const Step connected = co_await connect(slot, true);
  if (connected.state == State::ended) co_return connected;
  slot.begin_exchange(slot.options().server_closes);
  while (true) {
    if (!slot.exchange().all_sent()) {
      const Step sent = slot.send();
      if (sent.state == State::ended) co_return sent;
    }
    const Step ready = co_await slot.ready(!slot.exchange().all_sent());
    if (ready.state == State::ended) co_return ready;
    co_await slot.pause();
    const Step received = slot.receive(piece_size);
    if (received.state == State::ended) co_return received;
  }
}

Task<Step> write_byte_by_byte(CoroutineSlot& slot) {
  const Step connected = co_await connect(slot);
  if (connected.state == State::ended) co_return connected;
  slot.begin_exchange(slot.options().server_closes);
  while (!slot.exchange().all_sent()) {
    const Step sent = slot.send(1);
    if (sent.state == State::ended) co_return sent;
    co_await slot.pause();
    const Step in_time = slot.in_time();
    if (in_time.state == State::ended) co_return in_time;
    const Step received = slot.receive();
    if (received.state == State::ended) co_return received;
  }
  co_return co_await take_echo(slot);
}

Task<Step> close_half(CoroutineSlot& slot) {
  const Step connected = co_await connect(slot);
  if (connected.state == State::ended) co_return connected;
  slot.begin_exchange(true);
  const Step sent = co_await send_all(slot);
  if (sent.state == State::ended) co_return sent;
  slot.send_end();
  co_return co_await take_echo(slot);
}

Task<Step> reset_at_connect(CoroutineSlot& slot) {
  const Step connected = co_await connect(slot);
  if (connected.state == State::ended) co_return connected;
  co_return slot.reset();
}

Task<Step> reset_in_echo(CoroutineSlot& slot) {
  const Step connected = co_await connect(slot);
  if (connected.state == State::ended) co_return connected;
  slot.begin_exchange(false);
  const Step sent = slot.send();
  if (sent.state == State::ended) co_return sent;
  const Step ready = co_await slot.ready(false);
  if (ready.state == State::ended) co_return ready;
  const Step received = slot.receive(1);
  if (received.state == State::ended) co_return received;
  co_return slot.reset();
}

Task<Step> be_silent(CoroutineSlot& slot) {
  const Step connected = co_await connect(slot);
  if (connected.state == State::ended) co_return connected;
  while (true) {
    const Step ready = co_await slot.ready(false);
    if (ready.state == State::ended) co_return ready;
    const Step closed = slot.receive_nothing();
    if (closed.state == State::ended) co_return closed;
  }
}

}  // namespace

std::span<const Misbehaviour> misbehaviours() {
  using enum Outcome;
  static constexpr std::array registry{
      Misbehaviour{"slow-reader",
                   "takes the echo in pieces of 4096 bytes, 10 ms apart",
                   {echoed},
                   read_slowly},
      Misbehaviour{"byte-by-byte",
                   "sends a byte every 10 ms (give --timeout for a large --payload)",
                   {echoed},
                   write_byte_by_byte},
      Misbehaviour{"half-close",
                   "ends its side after the request, and takes the echo to the server's EOF",
                   {echoed},
                   close_half},
      Misbehaviour{
          "reset-at-connect", "sends an RST once the connection stands", {reset}, reset_at_connect},
      Misbehaviour{
          "reset-in-echo", "sends an RST after the first byte of the echo", {reset}, reset_in_echo},
      Misbehaviour{"silent", "sends nothing until the server closes", {eof, timeout}, be_silent}};
  return registry;
}

const Misbehaviour* find_misbehaviour(std::string_view name) {
  const auto all = misbehaviours();
  const auto found = std::find_if(all.begin(), all.end(),
                                  [&](const Misbehaviour& entry) { return entry.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace c10k
