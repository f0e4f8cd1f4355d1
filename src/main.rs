//! The verbs, nothing else.

fn main() -> std::process::ExitCode {
    beampipe::cli::main()
}
