//! The `kvmb` program: everything is in the library.

fn main() {
    let exit = kvmb::cli::main();
    // Without the handlers of the C library: the embedded libvirt driver has threads of its own, which its teardown at
    // exit does not wait for, and now and then one of them finds its data gone.
    signal_hook::low_level::exit(exit.number().into())
}
