// Included before all else of llama.cpp's fit.cpp. It sets the log callback of the whole process while
// it tries a model out, with data on its stack: threads that log meanwhile, or two that fit at once,
// read what is gone. The callback stays as it is, and fit.cpp (guarded) sees to the levels itself.
#pragma once

#include "llama.h"

#define llama_log_set(callback, user_data) static_cast<void>(sizeof(user_data))
