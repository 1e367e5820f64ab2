# `cmake --install BUILD --component cpp`: the static library, its headers and find_package(headwise CONFIG). The wheel
# installs the component `python` and nothing of this.
include(CMakePackageConfigHelpers)

set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/headwise)
install(TARGETS headwise EXPORT headwise-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
if(HEADWISE_FETCH_HIGHWAY)
  # Highway 1.0.3 exports no target of its own. Under another name, it overwrites no libhwy.a of the same prefix.
  set_target_properties(hwy PROPERTIES OUTPUT_NAME headwise_hwy)
  install(TARGETS hwy EXPORT headwise-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
  install(FILES licenses/highway.txt DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT cpp)
endif()
install(DIRECTORY include/headwise ${CMAKE_CURRENT_BINARY_DIR}/include/headwise
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT cpp)
install(EXPORT headwise-targets NAMESPACE headwise:: DESTINATION ${config_folder} COMPONENT cpp)

configure_package_config_file(cmake/headwise-config.cmake.in headwise-config.cmake INSTALL_DESTINATION ${config_folder})
write_basic_package_version_file(headwise-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/headwise-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/headwise-config-version.cmake
        DESTINATION ${config_folder} COMPONENT cpp)
