//! Compiles `proto/` with protox, so that no machine needs a protoc. Writes to `OUT_DIR` only.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["proto/tidewire.proto"], ["proto"])?;
    prost_build::Config::new().bytes([".tidewire.v1.Sample.value.bytes"]).compile_fds(descriptors)?;
    let descriptors = protox::compile(["proto/cluster.proto"], ["proto"])?;
    prost_build::Config::new().extern_path(".tidewire.v1", "crate::wire::proto").compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
