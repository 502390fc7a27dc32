// How deep the parser of a chat format recurses. It may come from a process that a template took over.
#pragma once

#include "common/json.h"

#include <cstddef>
#include <string>

namespace pyllama {

class parser_depth {
  public:
    parser_depth() = default;

    // Throws for one whose recursion nothing bounds: it must read an opening bracket before it comes
    // to itself again, as JSON's does.
    explicit parser_depth(const common_json & arena);

    // Bytes of stack that parsing a text takes at most.
    size_t stack_for(const std::string & text) const;

  private:
    size_t once = 0; // calls within each other that no recursion repeats
    size_t turn = 0; // those between one opening bracket and the next
};

} // namespace pyllama
