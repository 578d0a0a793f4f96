//! Compiles `proto/` with protox, so that no machine needs a protoc. Writes to `OUT_DIR` only.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["proto/tidewire.proto"], ["proto"])?;
    prost_build::Config::new().bytes([".tidewire.v1.Sample.value.bytes"]).compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto/tidewire.proto");
    Ok(())
}
