// One helper for system calls: EINTR is retried, EAGAIN is a value, and the rest is thrown with the
// call and its arguments, so that the message says what failed and with which value.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstdint>
#include <ctime>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include "ipc/owned_fd.hpp"

namespace c10k {

/// A failed system call. what() reads "bind 127.0.0.1:80: Permission denied".
using SystemError = std::system_error;

/// Throws a SystemError for `error` with the formatted call.
template <typename... Args>
[[noreturn]] void throw_system_error(int error, fmt::format_string<Args...> call, Args&&... args) {
  throw SystemError(error, std::generic_category(), fmt::format(call, std::forward<Args>(args)...));
}

/// Runs `call` until it is not interrupted. Returns its result, -1 with errno set on failure.
template <typename Call>
[[nodiscard]] auto retry_eintr(Call&& call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

/// Runs `call`; on failure throws a SystemError that names it: checked([&]{...}, "dup {}", fd).
template <typename Call, typename... Args>
auto checked(Call&& call, fmt::format_string<Args...> what, Args&&... args) {
  const auto result = retry_eintr(call);
  if (result == -1) throw_system_error(errno, what, std::forward<Args>(args)...);
  return result;
}

/// As checked(), but EAGAIN is no error: it returns no value.
template <typename Call, typename... Args>
auto checked_nonblocking(Call&& call, fmt::format_string<Args...> what, Args&&... args)
    -> std::optional<std::remove_cvref_t<decltype(call())>> {
  const auto result = retry_eintr(call);
  if (result != -1) return result;
  if (errno == EAGAIN || errno == EWOULDBLOCK) return std::nullopt;
  throw_system_error(errno, what, std::forward<Args>(args)...);
}

/// A close-on-exec duplicate of `fd`, which stays the caller's.
[[nodiscard]] inline OwnedFd duplicate(int fd) {
  return OwnedFd(
      checked([&] { return ::fcntl(fd, F_DUPFD_CLOEXEC, 3); }, "fcntl {} F_DUPFD_CLOEXEC", fd));
}

/// CLOCK_MONOTONIC in nanoseconds; one clock for all processes of the machine.
[[nodiscard]] inline std::int64_t monotonic_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace c10k
