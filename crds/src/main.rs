//! Writes the CustomResourceDefinition, its reference and the charts' values into the checkout.
use std::{path::Path, process::ExitCode};

use ringfold_crds::generate;

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            #[allow(clippy::print_stderr)] // a tool of developers
            {
                eprintln!("ringfold-crds: {e}");
            }
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, text) in generate::files()? {
        let written = std::fs::write(root.join(&path), text);
        written.map_err(|e| format!("{path} could not be written: {e}"))?;
    }
    Ok(())
}
