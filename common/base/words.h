#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kuasar {

/// Levenshtein distance in bytes; two neighbours that changed places count as one.
std::size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate that a mistyped word most likely meant; nothing when none is near: more than a
/// third of the word would have to change, in a word of up to five bytes more than one.
std::optional<std::string> nearest_word(std::string_view word,
                                        const std::vector<std::string>& candidates);

}  // namespace kuasar
