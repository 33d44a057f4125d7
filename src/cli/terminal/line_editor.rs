//! Reads a line from the terminal, with the usual editing keys.

use super::line_buffer::{Key, KeyReader, LineBuffer};
use super::screen;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use std::io::{self, ErrorKind, Write};
use unicode_width::UnicodeWidthStr;

/// Makes the terminal deliver keys immediately and without echo, until this is dropped. Ctrl-C still sends a signal.
struct EachKey(rustix::termios::Termios);

impl EachKey {
    fn begin() -> io::Result<EachKey> {
        let before = tcgetattr(io::stdin())?;
        let mut settings = before.clone();
        settings.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN);
        settings.special_codes[SpecialCodeIndex::VMIN] = 1;
        settings.special_codes[SpecialCodeIndex::VTIME] = 0;
        // Keep what was typed ahead or pasted.
        tcsetattr(io::stdin(), OptionalActions::Drain, &settings)?;
        Ok(EachKey(before))
    }
}

impl Drop for EachKey {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Asks for a line, starting with `initial`, until `check` accepts it.
pub(super) fn read_line(
    question: &str,
    initial: &str,
    check: &dyn Fn(&str) -> Result<(), String>,
) -> io::Result<String> {
    let mut line = LineBuffer::new(initial);
    loop {
        let each_key = EachKey::begin()?;
        edit(question, &mut line)?;
        // The check may ask questions itself.
        drop(each_key);
        write("\n")?;
        match check(&line.text()) {
            Ok(()) => return Ok(line.text()),
            Err(why) => write(&format!("  {why}\n"))?,
        }
    }
}

/// Minimum number of columns for the answer beside its question.
const LEAST_ANSWER: usize = 20;

/// Edits the line until Enter is pressed.
fn edit(question: &str, line: &mut LineBuffer) -> io::Result<()> {
    let mut prompt = format!("{question}: ");
    if prompt.width() + LEAST_ANSWER > screen::stderr_size().0 {
        // A long question gets its own lines.
        write(&format!("{question}:\n"))?;
        prompt = "> ".to_owned();
    }
    let mut keys = KeyReader::default();
    draw(&prompt, line)?;
    loop {
        let mut byte = [0];
        let count = match rustix::io::read(io::stdin(), &mut byte) {
            Err(rustix::io::Errno::INTR) => continue,
            read => read?,
        };
        match keys.take(byte[0]).filter(|_| count > 0) {
            _ if count == 0 => return Err(ErrorKind::UnexpectedEof.into()),
            Some(Key::EndOfInput) if line.is_empty() => return Err(ErrorKind::UnexpectedEof.into()),
            Some(Key::Enter) => return Ok(()),
            Some(key) => line.press(key),
            None => continue,
        }
        draw(&prompt, line)?;
    }
}

/// Draws the line after its prompt, as much of it as fits into the terminal.
fn draw(prompt: &str, line: &LineBuffer) -> io::Result<()> {
    let columns = screen::stderr_size().0.saturating_sub(1);
    let (text, cursor) = line.window(columns.saturating_sub(prompt.width()));
    let right = prompt.width() + cursor;
    write(&format!("\r{prompt}{text}\u{1b}[K\r\u{1b}[{right}C"))
}

fn write(text: &str) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush())
}
