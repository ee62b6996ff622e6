//! Compiles the shim over RocksDB when its headers and a C++ compiler are there; without them the
//! benchmark is built all the same, and says in its output that RocksDB was left out.

use std::io::Write as _;
use std::process::Stdio;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=rocksdb/shim.cc");
    // A file that is missing counts as changed: the headers are found by the next build after
    // they were installed.
    println!("cargo:rerun-if-changed=/usr/include/rocksdb/version.h");
    println!("cargo:rustc-check-cfg=cfg(has_rocksdb)");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").file("rocksdb/shim.cc");
    if !has_headers(&build) {
        return;
    }
    build.compile("rocksdb_shim");
    println!("cargo:rustc-link-lib=dylib=rocksdb");
    println!("cargo:rustc-cfg=has_rocksdb");
}

fn has_headers(build: &cc::Build) -> bool {
    let Ok(compiler) = build.try_get_compiler() else { return false };
    let child = compiler
        .to_command()
        .args(["-fsyntax-only", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let written = child
        .stdin
        .take()
        .is_some_and(|mut stdin| stdin.write_all(b"#include <rocksdb/db.h>\n").is_ok());
    child.wait().is_ok_and(|status| status.success()) && written
}
