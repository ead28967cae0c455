//! Writes the CustomResourceDefinition and its reference into the checkout.
use std::{path::Path, process::ExitCode};

use ringfold_crds::generate;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = [
        (generate::YAML_PATH, generate::yaml()),
        (generate::REFERENCE_PATH, generate::reference()),
    ];
    for (path, text) in files {
        let written =
            text.and_then(|t| std::fs::write(root.join(path), t).map_err(|e| e.to_string()));
        if let Err(e) = written {
            #[allow(clippy::print_stderr)] // a tool of developers
            {
                eprintln!("ringfold-crds: {path} could not be written: {e}");
            }
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
