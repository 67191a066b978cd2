// --list: what there is, and what works here.
#pragma once

namespace c10k {

/// Prints strategies, loops, methods (each probed) and policies to stdout.
void print_list(bool json);

}  // namespace c10k
