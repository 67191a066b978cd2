// Whether to read before a loop says that there is something to read.
#pragma once

namespace c10k {

/// Guesses whether a read will find something, from whether the last ones did.
class ReadAheadGuess {
 public:
  [[nodiscard]] bool worth_trying() {
    // Now and then against the odds, or a change would go unnoticed.
    return score_ >= 512 || ++skipped_ % 64 == 0;
  }
  void record(bool found) { score_ += ((found ? 1024 : 0) - score_) / 16; }

 private:
  int score_ = 512;
  unsigned skipped_ = 0;
};

}  // namespace c10k
