// A journal file of requests: read back from any bytes, then used, closed and read back again, with
// crashes of its daemons between. What is unanswered and what was struck must be the same to every
// reader.

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "base/files.h"
#include "ttrpc/file_journal.h"

namespace {

using kuasar::ttrpc::FileJournal;
using kuasar::ttrpc::Journal;

void must(bool truth) {
  if (!truth) std::abort();
}

const std::string& file() {
  static const std::string path = "/tmp/kuasar-fuzz-journal-" + std::to_string(::getpid());
  return path;
}

// Each byte is a step on a journal that began empty; a model says what must be unanswered.
void run_steps(std::string_view steps) {
  ::unlink(file().c_str());
  std::map<std::uint32_t, std::string> model;
  auto journal = FileJournal::open(file());
  must(journal.has_value());
  std::uint32_t stream = 1;
  for (const char step : steps) {
    const auto value = static_cast<unsigned char>(step);
    if (value < 120) {
      const std::string frame(value, 'f');
      must((*journal)->append(stream, frame).has_value());
      model[stream] = frame;
      stream += 2;
    } else if (value < 200 && !model.empty()) {
      const auto oldest = model.begin();
      (*journal)->strike(oldest->first);
      model.erase(oldest);
    } else if (value < 230 && !model.empty()) {
      (*journal)->mark_applied(model.begin()->first);
    } else {
      const bool crashed = value % 2 == 0;
      journal = FileJournal::open(file(), {}, crashed);
      must(journal.has_value());
      const auto left = (*journal)->unanswered();
      must(left.size() == model.size());
      auto wanted = model.begin();
      for (const Journal::Entry& entry : left) must(entry.frame == (wanted++)->second);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  must(kuasar::write_file(file(), bytes).has_value());
  if (auto journal = FileJournal::open(file())) {
    for (const Journal::Entry& entry : (*journal)->unanswered()) must(entry.frame.size() <= size);
    (void)(*journal)->append((*journal)->last_stream() | 1U, "next");
  }
  if (size < 200) run_steps(bytes);
  ::unlink(file().c_str());
  return 0;
}
