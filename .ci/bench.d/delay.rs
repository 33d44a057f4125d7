//! A port that leads to another one of this host, a while later each way: `delay PORT MILLISECONDS` prints its own, and
//! stays.

#[path = "../../tests/support/proxy.rs"]
#[allow(dead_code)]
mod proxy;

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).map(|word| word.parse().expect("a number")).collect();
    let port = u16::try_from(numbers[0]).expect("a port");
    let proxy = proxy::Proxy::start(port, std::time::Duration::from_millis(numbers[1]));
    println!("{}", proxy.port());
    loop {
        std::thread::park();
    }
}
