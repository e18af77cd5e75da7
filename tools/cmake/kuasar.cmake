# Compiler settings and the two helpers that every CMakeLists.txt of the tree uses.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

if(NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(KUASAR_CCACHE ccache)
  if(KUASAR_CCACHE)
    # Two build trees of one checkout share objects: paths are hashed relative to the source root.
    set(CMAKE_CXX_COMPILER_LAUNCHER
        ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
        ${KUASAR_CCACHE})
  endif()
endif()

add_compile_options(-fno-omit-frame-pointer -fstack-protector-strong)
find_program(KUASAR_LLD ld.lld)
if(KUASAR_LLD)
  add_link_options(-fuse-ld=lld)
endif()
if(KUASAR_SANITIZE)
  add_compile_options(-fsanitize=${KUASAR_SANITIZE} -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=${KUASAR_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    # clang 14 cannot emit this check for coroutines; it must stand behind -fsanitize=.
    add_compile_options(-fno-sanitize=function)
  endif()
else()
  add_link_options(LINKER:-z,relro,-z,now LINKER:--gc-sections)
  add_compile_options(-ffunction-sections -fdata-sections)
  if(CMAKE_BUILD_TYPE STREQUAL "Release" OR CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo")
    add_compile_definitions(_FORTIFY_SOURCE=2)
  endif()
endif()

if(KUASAR_FAILPOINTS)
  add_compile_definitions(KUASAR_FAILPOINTS)
endif()

set(KUASAR_WARNINGS -Wall -Wextra -Wshadow -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Three that g++ 12 gets wrong when it optimises: the coroutine frames that Boost.Asio recycles,
  # the value of an empty std::optional, and `"literal" + std::string` (GCC bug 105651).
  list(APPEND KUASAR_WARNINGS -Wno-mismatched-new-delete -Wno-maybe-uninitialized -Wno-restrict)
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(Boost 1.81 CONFIG REQUIRED COMPONENTS json)

# One layer of common/: a static library kuasar_<name> whose LINK line names every layer that it
# may include. `tools/dev check` compares the line with the law in docs/ARCHITECTURE.md.
function(kuasar_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(kuasar_${name} STATIC ${ARG_SOURCES})
  target_include_directories(kuasar_${name} PUBLIC ${CMAKE_SOURCE_DIR}/common)
  target_compile_options(kuasar_${name} PRIVATE ${KUASAR_WARNINGS})
  target_link_libraries(kuasar_${name} PUBLIC ${ARG_LINK})
endfunction()

# An executable of ours (daemon, helper or test) with the project's warnings.
function(kuasar_executable name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE ${KUASAR_WARNINGS})
  target_link_libraries(${name} PRIVATE ${ARG_LINK})
endfunction()

# kuasar_install(TARGET DESTINATION): a program that is installed. `kuasar_programs` builds all of
# them, which an install needs.
add_custom_target(kuasar_programs)
function(kuasar_install target destination)
  install(TARGETS ${target} DESTINATION ${destination})
  add_dependencies(kuasar_programs ${target})
endfunction()
