// The main of a fuzz target where there is no libFuzzer (any compiler): runs every file of the folders named as
// arguments, then RUNS inputs made of those files by random changes. The seed is fixed, so a finding comes again.
// The input that ends the process is written to a file, which the last line names.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t largest_input = 4096;
constexpr unsigned longest_run_s = 20;

Bytes current;
char finding[4096];

/// In a dying process: nothing here may allocate.
void save() {
  const int file = ::open(finding, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  (void)!::write(file, current.data(), current.size());
  ::close(file);
  (void)!::write(STDERR_FILENO, "fuzz: the input is in ", 22);
  (void)!::write(STDERR_FILENO, finding, std::strlen(finding));
  (void)!::write(STDERR_FILENO, "\n", 1);
}

void on_signal(int number) {
  if (number == SIGALRM) (void)!::write(STDERR_FILENO, "fuzz: an input takes too long\n", 30);
  save();
  ::_exit(1);
}

void run(const Bytes& input) {
  current = input;
  ::alarm(longest_run_s);
  // A copy of its exact size, so that a read beyond its end is seen.
  const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[input.size()]);
  std::copy(input.begin(), input.end(), copy.get());
  LLVMFuzzerTestOneInput(copy.get(), input.size());
}

class Mutator {
 public:
  explicit Mutator(const std::vector<Bytes>& corpus) : corpus_(corpus) {}

  Bytes next() {
    Bytes input = pick();
    for (std::size_t changes = 1 + below(6); changes > 0; --changes) change(input);
    if (input.size() > largest_input) input.resize(largest_input);
    return input;
  }

 private:
  std::size_t below(std::size_t bound) { return random_() % bound; }
  const Bytes& pick() { return corpus_[below(corpus_.size())]; }

  void change(Bytes& input) {
    const std::size_t at = below(input.size() + 1);
    const auto here = input.begin() + static_cast<std::ptrdiff_t>(at);
    const std::size_t behind = input.size() - at;
    switch (below(6)) {
      case 0:
        if (behind != 0) input[at] ^= static_cast<std::uint8_t>(1U << below(8));
        break;
      case 1:
        if (behind != 0) input[at] = static_cast<std::uint8_t>(random_());
        break;
      case 2: {  // an edge
        static constexpr std::uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff};
        const std::size_t length = std::min<std::size_t>(behind, 1U << below(4));
        std::fill_n(here, length, edges[below(std::size(edges))]);
        break;
      }
      case 3:
        input.erase(here, here + static_cast<std::ptrdiff_t>(std::min(behind, below(16))));
        break;
      case 4:
        input.insert(here, 1 + below(8), static_cast<std::uint8_t>(random_()));
        break;
      default: {  // a part of another
        const Bytes& other = pick();
        if (other.empty()) break;
        const std::size_t from = below(other.size());
        const std::size_t length = 1 + below(std::min<std::size_t>(other.size() - from, 64));
        const auto part = other.begin() + static_cast<std::ptrdiff_t>(from);
        input.insert(here, part, part + static_cast<std::ptrdiff_t>(length));
      }
    }
  }

  const std::vector<Bytes>& corpus_;
  std::mt19937_64 random_{20'261'123};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s RUNS FOLDER...\n", argv[0]);
    return 2;
  }
  std::snprintf(finding, sizeof finding, "%s-finding", argv[0]);
  for (const int number : {SIGABRT, SIGALRM}) ::signal(number, on_signal);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(save);
  std::vector<Bytes> corpus;
  for (int i = 2; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream file(entry.path(), std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: no input in %s\n", argv[0], argv[2]);
    return 1;
  }
  for (const Bytes& input : corpus) run(input);
  Mutator mutator(corpus);
  const long runs = std::strtol(argv[1], nullptr, 10);
  for (long i = 0; i < runs; ++i) run(mutator.next());
  std::printf("%zu inputs and %ld made of them\n", corpus.size(), runs);
  return 0;
}
