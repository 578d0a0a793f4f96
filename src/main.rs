//! The `tidewire` command.

fn main() -> std::process::ExitCode {
    tidewire::cli::run()
}
