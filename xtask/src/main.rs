//! Development tasks.
mod generate;
fn main() -> anyhow::Result<()> { generate::proto(std::path::Path::new(".")) }
