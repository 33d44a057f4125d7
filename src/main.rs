//! The `kvmb` program. All of it is in the library.

fn main() {
    let exit = kvmb::cli::main();
    // Skip the exit handlers of the C library: the embedded libvirt driver has its own threads, which its teardown at
    // exit does not wait for, and one of them occasionally finds its data freed.
    signal_hook::low_level::exit(exit.number().into())
}
