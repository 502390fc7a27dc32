// Part of llama.cpp's tools. Their log is written on a thread of its own, which llama.cpp leaves to
// the end of the process, so that on a busy machine the last lines would be lost.
#include "log.h"

namespace {

struct AtExit {
    ~AtExit() { common_log_flush(common_log_main()); }
} at_exit;

}  // namespace
