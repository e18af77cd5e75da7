#include "oci/resources.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <limits>
#include <optional>
#include <string>

#include "oci/json_view.h"
#include "oci/spec.h"

namespace kuasar::oci {
namespace {

namespace json = boost::json;

// 0 is "as it is".
Result<std::optional<std::int64_t>> number(const json::value& root, std::string_view path) {
  TRY(const json::value* value, find_field(root, path));
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) return wrong_kind(path, "a number", *value);
  if (value->is_uint64() &&
      value->get_uint64() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    // Go's encoding of "no limit" by a program that took it for unsigned.
    return std::optional<std::int64_t>(-1);
  }
  if (!value->is_int64() && !value->is_uint64()) {
    return fail(Code::kInvalidArgument, "{}: expected a whole number", path);
  }
  const std::int64_t found =
      value->is_int64() ? value->get_int64() : static_cast<std::int64_t>(value->get_uint64());
  if (found == 0) return std::nullopt;
  return std::optional<std::int64_t>(found);
}

Result<std::optional<std::uint64_t>> unsigned_number(const json::value& root,
                                                     std::string_view path) {
  TRY(const std::optional<std::int64_t> value, number(root, path));
  if (!value) return std::nullopt;
  if (*value < 0) return fail(Code::kInvalidArgument, "{}: {} is negative", path, *value);
  return std::optional<std::uint64_t>(static_cast<std::uint64_t>(*value));
}

Result<> refuse_limits(const json::value& root) {
  for (const char* path : {"cpu.realtimeRuntime", "cpu.realtimePeriod", "cpu.burst", "cpu.idle",
                           "blockIO.leafWeight"}) {
    TRY(const std::optional<std::int64_t> value, number(root, path));
    if (value) return fail(Code::kUnimplemented, "resources.{}: cannot be changed by Update", path);
  }
  for (const char* path :
       {"blockIO.weightDevice", "blockIO.throttleReadBpsDevice", "blockIO.throttleWriteBpsDevice",
        "blockIO.throttleReadIOPSDevice", "blockIO.throttleWriteIOPSDevice"}) {
    TRY(const json::value* value, find_field(root, path));
    if (value == nullptr) continue;
    if (!value->is_array()) return wrong_kind(path, "an array", *value);
    if (value->get_array().empty()) continue;
    return fail(Code::kUnimplemented, "resources.{}: cannot be changed by Update", path);
  }
  return {};
}

Result<> read_hugepages(const json::value& root, os::CgroupLimits& limits) {
  constexpr std::string_view kPath = "hugepageLimits";
  TRY(const json::value* value, find_field(root, kPath));
  if (value == nullptr) return {};
  if (!value->is_array()) return wrong_kind(kPath, "an array", *value);
  for (const json::value& element : value->get_array()) {
    if (!element.is_object()) return wrong_kind(kPath, "an array of objects", element);
    os::CgroupLimits::Hugepages page;
    TRY(page.page_size, text_field(element, "pageSize"));
    const bool named = !page.page_size.empty() &&
                       page.page_size.find_first_not_of("0123456789KMGB") == std::string::npos;
    if (!named) {
      return fail(Code::kInvalidArgument, "{}: \"{}\" is no page size", kPath,
                  page.page_size.substr(0, 50));
    }
    TRY(const std::optional<std::uint64_t> bytes, unsigned_number(element, "limit"));
    page.bytes = bytes.value_or(0);
    limits.hugepages.push_back(std::move(page));
  }
  return {};
}

Result<> read_unified(const json::value& root, os::CgroupLimits& limits) {
  TRY(const json::value* value, find_field(root, "unified"));
  if (value == nullptr) return {};
  if (!value->is_object()) return wrong_kind("unified", "an object", *value);
  for (const auto& member : value->get_object()) {
    TRY(limits.unified[std::string(member.key())],
        as_text(member.value(), fmt::format("unified[\"{}\"]", std::string_view(member.key()))));
  }
  return {};
}

}  // namespace

Result<os::CgroupLimits> parse_resources(std::string_view text) {
  if (text.size() > kMaxSpecBytes) {
    return fail(Code::kResourceExhausted, "resources: {} bytes, at most {} are accepted",
                text.size(), kMaxSpecBytes);
  }
  json::parse_options options;
  options.max_depth = kMaxSpecDepth;
  boost::system::error_code ec;
  const json::value root = json::parse(text, ec, json::storage_ptr(), options);
  if (ec) return fail(Code::kInvalidArgument, "resources: not valid JSON: {}", ec.message());
  if (!root.is_object()) return wrong_kind("resources", "an object", root);

  os::CgroupLimits limits;
  TRY(limits.cpu_shares, unsigned_number(root, "cpu.shares"));
  TRY(limits.cpu_quota, number(root, "cpu.quota"));
  TRY(limits.cpu_period, unsigned_number(root, "cpu.period"));
  TRY(limits.cpuset_cpus, text_field(root, "cpu.cpus"));
  TRY(limits.cpuset_mems, text_field(root, "cpu.mems"));
  TRY(limits.memory, number(root, "memory.limit"));
  TRY(limits.memory_reservation, number(root, "memory.reservation"));
  TRY(limits.memory_swap, number(root, "memory.swap"));
  TRY(limits.pids, number(root, "pids.limit"));
  TRY(limits.io_weight, unsigned_number(root, "blockIO.weight"));
  CHECK_OK(read_hugepages(root, limits));
  CHECK_OK(read_unified(root, limits));
  CHECK_OK(refuse_limits(root));
  return limits;
}

}  // namespace kuasar::oci
