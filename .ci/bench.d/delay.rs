//! A port that leads to another one of this host, a while later each way: `delay PORT MILLISECONDS [MEGABITS]` prints
//! its own, and stays. Where the megabits a second are given, no more pass each way.

#[path = "../../tests/support/proxy.rs"]
#[allow(dead_code)]
mod proxy;

fn main() {
    let numbers: Vec<f64> = std::env::args().skip(1).map(|word| word.parse().expect("a number")).collect();
    let delay = std::time::Duration::from_secs_f64(numbers[1] / 1000.0);
    let bytes_per_second = numbers.get(2).map(|megabits| (megabits * 125_000.0) as u64);
    let proxy = proxy::Proxy::start_limited(numbers[0] as u16, delay, bytes_per_second);
    println!("{}", proxy.port());
    loop {
        std::thread::park();
    }
}
