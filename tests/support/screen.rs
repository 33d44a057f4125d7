//! Emulates a terminal: the few control sequences that kvmb uses.

/// Returns the lines on a terminal with this number of columns, without trailing blanks and trailing empty lines.
pub fn shown(sent: &str, columns: usize) -> Vec<String> {
    let mut screen = Screen { lines: vec![Vec::new()], row: 0, column: 0, columns };
    let mut rest = sent.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\r' => screen.column = 0,
            '\n' => screen.down(),
            '\u{1b}' if rest.next_if_eq(&'[').is_some() => {
                let mut number = String::new();
                let command = loop {
                    match rest.next() {
                        Some(c) if c.is_ascii_digit() || ";?".contains(c) => number.push(c),
                        command => break command,
                    }
                };
                screen.command(command.unwrap_or('m'), number.parse().ok());
            }
            c if c.is_control() => {}
            c => screen.put(c),
        }
    }
    let lines = screen.lines.iter().map(|line| String::from_iter(line).trim_end().to_owned());
    let mut lines: Vec<String> = lines.collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    columns: usize,
}

impl Screen {
    fn down(&mut self) {
        self.row += 1;
        if self.row == self.lines.len() {
            self.lines.push(Vec::new());
        }
    }

    fn put(&mut self, c: char) {
        if self.column == self.columns {
            self.column = 0;
            self.down();
        }
        let line = &mut self.lines[self.row];
        line.resize(line.len().max(self.column + 1), ' ');
        line[self.column] = c;
        self.column += 1;
    }

    fn command(&mut self, command: char, number: Option<usize>) {
        let count = number.unwrap_or(1);
        match (command, number) {
            ('A', _) => self.row = self.row.saturating_sub(count),
            ('B', _) => self.row = (self.row + count).min(self.lines.len() - 1),
            ('C', _) => self.column = (self.column + count).min(self.columns - 1),
            ('D', _) => self.column = self.column.saturating_sub(count),
            ('J', None | Some(0)) => {
                self.lines[self.row].truncate(self.column);
                self.lines.truncate(self.row + 1);
            }
            ('K', None | Some(0)) => self.lines[self.row].truncate(self.column),
            ('K', Some(2)) => self.lines[self.row].clear(),
            ('m' | 'h' | 'l', _) => {}
            (other, _) => panic!("this screen does not know the sequence {other} {number:?}"),
        }
    }
}
