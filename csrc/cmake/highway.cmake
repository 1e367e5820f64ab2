# Finds Highway on the system or, with HEADWISE_FETCH_HIGHWAY, downloads the version that headwise is tested with, for
# systems without a package of it, such as the images that wheels are built in.
if(NOT HEADWISE_FETCH_HIGHWAY)
  find_package(hwy 1.0.3 REQUIRED)
  return()
endif()

include(FetchContent)
if(POLICY CMP0135)
  cmake_policy(SET CMP0135 NEW)  # unpacked files get the time of extraction
endif()
set(hwy_VERSION 1.0.3)
# The hash is also that of Debian's highway_1.0.3.orig.tar.gz; FETCHCONTENT_SOURCE_DIR_HIGHWAY takes an unpacked copy.
FetchContent_Declare(highway
  URL https://github.com/google/highway/archive/refs/tags/${hwy_VERSION}.tar.gz
  URL_HASH SHA256=566fc77315878473d9a6bd815f7de78c73734acdcb745c3dde8579560ac5440e
)
foreach(part CONTRIB EXAMPLES INSTALL TESTS)
  set(HWY_ENABLE_${part} OFF CACHE INTERNAL "")
endforeach()
set(HWY_FORCE_STATIC_LIBS ON CACHE INTERNAL "")
FetchContent_MakeAvailable(highway)
set_target_properties(hwy PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
get_target_property(includes hwy INTERFACE_INCLUDE_DIRECTORIES)
set_target_properties(hwy PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${includes}")  # no warnings from its headers
if(NOT MSVC)
  # File names in its messages do not depend on the build directory.
  target_compile_options(hwy PUBLIC $<BUILD_INTERFACE:-ffile-prefix-map=${highway_SOURCE_DIR}=highway>)
endif()
if(NOT TARGET hwy::hwy)
  add_library(hwy::hwy ALIAS hwy)
endif()
