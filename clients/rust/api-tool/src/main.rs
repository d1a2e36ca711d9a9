//! Lists the public API that a file of rustdoc's JSON has. Exits with 77 if its form is not the one that is known.

use std::{env, error::Error, process::ExitCode};

use public_api::{Builder, Error as Problem};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: oncegate-client-api FILE")?;
    let listed = Builder::from_rustdoc_json(path)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    match listed {
        Ok(api) => print!("{api}"),
        Err(Problem::SerdeJsonError(error)) => {
            eprintln!("the JSON of this rustdoc cannot be read: {error}");
            return Ok(ExitCode::from(77));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}
