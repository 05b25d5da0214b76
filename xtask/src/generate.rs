//! Generated files.
use std::path::Path;

/// Rust code from `proto/proto`, into `proto/src/gen`.
pub fn proto(root: &Path) -> anyhow::Result<()> {
    let dir = root.join("proto/proto");
    let files = protox::compile(
        ["weir/v1alpha1/config.proto", "weir/v1alpha1/discovery.proto", "weir/v1alpha1/report.proto"].map(|f| dir.join(f)),
        [&dir],
    )?;
    let out = root.join("proto/src/gen");
    std::fs::create_dir_all(&out)?;
    tonic_prost_build::configure()
        .build_transport(true)
        .bytes(".weir.v1alpha1.Resource.body")
        .out_dir(&out)
        .compile_fds(files)?;
    Ok(())
}
