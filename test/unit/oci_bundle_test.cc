#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/files.h"
#include "oci/bundle.h"

namespace kuasar::oci {
namespace {

// A bundle directory as containerd makes it, removed at the end.
class TestBundle {
 public:
  TestBundle() {
    char name[] = "/tmp/kuasar-bundle-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    path_ = name;
    write("sandbox", "pod-1");
    write("config.json", R"({"root":{"path":"rootfs"}})");
  }
  TestBundle(const TestBundle&) = delete;
  TestBundle& operator=(const TestBundle&) = delete;
  ~TestBundle() { std::filesystem::remove_all(path_); }

  void write(const std::string& name, std::string_view content) const {
    REQUIRE(write_file(path_ + "/" + name, content));
  }
  void remove(const std::string& name) const { std::filesystem::remove(path_ + "/" + name); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string message(const Result<Bundle>& bundle) {
  REQUIRE_FALSE(bundle);
  return bundle.error().message;
}

}  // namespace

TEST_CASE("T26 oci bundle: the sandbox of a task stands in its bundle") {
  TestBundle files;
  files.write("sandbox", GENERATE_COPY(as<std::string>{}, "pod-1", "pod-1\n", "  pod-1 \r\n"));
  const auto bundle = open_bundle(files.path() + "//");
  REQUIRE(bundle);
  CHECK(bundle->path == files.path());
  CHECK(bundle->sandbox_id == "pod-1");
  CHECK(bundle->spec.root_path().value() == "rootfs");
}

TEST_CASE("oci bundle: hostile paths are refused before anything is opened") {
  for (const std::string& path :
       {std::string(), std::string("relative"), std::string("/tmp/../etc"), std::string("/.."),
        std::string("/tmp/a\0b", 8), "/" + std::string(10'000, 'x')}) {
    const auto bundle = open_bundle(path);
    REQUIRE_FALSE(bundle);
    CHECK(bundle.error().code == Code::kInvalidArgument);
  }
  CHECK(open_bundle("/tmp/kuasar-no-such-bundle").error().code == Code::kNotFound);
}

TEST_CASE("oci bundle: what is wrong with it is said") {
  TestBundle files;
  SECTION("a container outside of any pod") {
    files.remove("sandbox");
    const auto bundle = open_bundle(files.path());
    CHECK(message(bundle).find("belongs to no pod") != std::string::npos);
    CHECK(bundle.error().code == Code::kFailedPrecondition);
  }
  SECTION("hostile sandbox ids") {
    for (const std::string& id :
         {std::string(), std::string(".."), std::string("a/b"), std::string("a\0b", 3),
          std::string(200, 'a'), std::string("a b")}) {
      files.write("sandbox", id);
      const auto bundle = open_bundle(files.path());
      CHECK(message(bundle).find("sandbox id") != std::string::npos);
      CHECK(bundle.error().code == Code::kInvalidArgument);
    }
    files.write("sandbox", std::string(100'000, 'a'));
    CHECK(open_bundle(files.path()).error().code == Code::kResourceExhausted);
  }
  SECTION("no config.json") {
    files.remove("config.json");
    const auto bundle = open_bundle(files.path());
    CHECK(message(bundle).find("config.json") != std::string::npos);
    CHECK(bundle.error().code == Code::kNotFound);
  }
  SECTION("half a config.json") {
    files.write("config.json", R"({"root":{"pa)");
    CHECK(message(open_bundle(files.path())).find("config.json: not valid JSON") !=
          std::string::npos);
  }
  SECTION("a config.json that is too large") {
    REQUIRE(::truncate((files.path() + "/config.json").c_str(), (16L << 20) + 1) == 0);
    CHECK(open_bundle(files.path()).error().code == Code::kResourceExhausted);
  }
  SECTION("files that are no files") {
    files.remove("config.json");
    const std::string config = files.path() + "/config.json";
    REQUIRE(::mkfifo(config.c_str(), 0600) == 0);
    CHECK(message(open_bundle(files.path())).find("not a regular file") != std::string::npos);
    files.remove("config.json");
    REQUIRE(::symlink("/etc/hostname", config.c_str()) == 0);
    CHECK_FALSE(open_bundle(files.path()));
  }
  SECTION("a link to a bundle") {
    const std::string link = files.path() + "-link";
    REQUIRE(::symlink(files.path().c_str(), link.c_str()) == 0);
    CHECK_FALSE(open_bundle(link));
    CHECK_FALSE(open_bundle(link + "/"));
    ::unlink(link.c_str());
  }
}

}  // namespace kuasar::oci
