//! Reads folders and whole files, several of them at once.
//!
//! ```text
//! open the file, open each folder   ─►   read the file and its size, read each folder
//! ```
//!
//! Independent requests are sent together: two round trips, whatever the number of folders.

use super::files::{Handle, PIECE_BYTES, PLAUSIBLE_BYTES, SftpClient, SftpResult, flags, text};
use super::wire::{Field, ListedNames, PacketType, Reply, Sent, Stat};
use super::{Result, SftpFault};

/// The number of parallel requests for the entries of a folder; a server answers each with about a hundred of them.
const LISTING_REQUESTS: usize = 8;

/// The maximum size of a folder's listing: enough for the names of half a million files.
const LONGEST_LISTING_BYTES: usize = 96 << 20;

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteEntry {
    pub(crate) name: String,
    /// Its attributes.
    pub(crate) stat: Stat,
}

/// An open handle with its pending requests.
struct Begun<S> {
    handle: Handle,
    sent: S,
}

/// The result of [`SftpClient::look`].
pub(crate) struct Look {
    pub(crate) contents: Option<SftpResult<Option<Vec<u8>>>>,
    /// In the order of the folders that were passed.
    pub(crate) lists: Vec<SftpResult<Vec<RemoteEntry>>>,
}

impl SftpClient {
    /// Lists a folder, without `.` and `..`. Fails if the listing exceeds [`LONGEST_LISTING_BYTES`].
    pub(crate) fn list(&self, path: &str) -> SftpResult<Vec<RemoteEntry>> {
        let sent = self.wire.send(PacketType::OpenFolder, &[text(path)])?;
        let folder = self.handle(sent)?;
        let listing = self.begin_listing(folder)?;
        self.finish_listing(listing)
    }

    /// Lists several folders and reads a file, if one is given, like [`SftpClient::list`] and [`SftpClient::read`], in
    /// as many round trips as the longest of them takes.
    pub(crate) fn look(&self, file: Option<(&str, u64)>, folders: &[String]) -> Result<Look> {
        let file_sent = file.map(|(path, _)| self.send_open(path, flags::READ)).transpose()?;
        let open = |folder: &String| self.wire.send(PacketType::OpenFolder, &[text(folder)]);
        let folders_sent = folders.iter().map(open).collect::<Result<Vec<Sent>>>()?;
        // Send all requests of a stage before waiting for the first reply of the next one.
        let file_opened = file_sent.map(|sent| self.handle(sent));
        let folders_opened: Vec<_> = folders_sent.into_iter().map(|sent| self.handle(sent)).collect();
        let reading = file_opened.map(|opened| opened.and_then(|file| Ok(self.begin_reading(file)?)));
        let listings: Vec<_> = folders_opened
            .into_iter()
            .map(|opened| opened.and_then(|folder| Ok(self.begin_listing(folder)?)))
            .collect();
        let most_bytes = file.map_or(0, |(_, most_bytes)| most_bytes);
        Ok(Look {
            contents: reading.map(|begun| begun.and_then(|begun| self.finish_reading(begun, most_bytes))),
            lists: listings.into_iter().map(|begun| begun.and_then(|begun| self.finish_listing(begun))).collect(),
        })
    }

    fn begin_listing(&self, folder: Handle) -> Result<Begun<Vec<Sent>>> {
        Ok(Begun { sent: self.send_read_folder(&folder)?, handle: folder })
    }

    fn send_read_folder(&self, folder: &Handle) -> Result<Vec<Sent>> {
        (0..LISTING_REQUESTS).map(|_| self.wire.send(PacketType::ReadFolder, &[folder.part()])).collect()
    }

    fn finish_listing(&self, begun: Begun<Vec<Sent>>) -> SftpResult<Vec<RemoteEntry>> {
        let Begun { handle: folder, mut sent } = begun;
        let (mut entries, mut at_end, mut refused, mut listed_bytes) = (Vec::new(), false, None, 0);
        loop {
            for sent in sent {
                match self.wire.receive(sent)? {
                    Reply::Names(ListedNames { entries: names, packet_bytes }) => {
                        listed_bytes += packet_bytes;
                        entries.extend(names.into_iter().map(|(name, stat)| RemoteEntry { name, stat }));
                    }
                    Reply::End => at_end = true,
                    Reply::Refused(refusal) => (at_end, refused) = (true, Some(refusal)),
                    _ => return Err(self.wire.protocol_error().into()),
                }
            }
            if listed_bytes > LONGEST_LISTING_BYTES {
                return Err(self.wire.connection().lost("it never stops listing a folder").into());
            }
            if at_end {
                break;
            }
            sent = self.send_read_folder(&folder)?;
        }
        self.leave(&folder);
        entries.retain(|entry| ![".", ".."].contains(&entry.name.as_str()));
        refused.map_or(Ok(entries), |refusal| Err(SftpFault::Refused(refusal)))
    }

    /// Reads a whole file. Returns `None` if the server reports that it is longer than `most_bytes`.
    pub(crate) fn read(&self, path: &str, most_bytes: u64) -> SftpResult<Option<Vec<u8>>> {
        let sent = self.send_open(path, flags::READ)?;
        let file = self.handle(sent)?;
        let begun = self.begin_reading(file)?;
        self.finish_reading(begun, most_bytes)
    }

    /// Requests the beginning of a file together with its size: most files are short.
    fn begin_reading(&self, file: Handle) -> Result<Begun<[Sent; 2]>> {
        let head = [file.part(), Field::Long(0), Field::Number(PIECE_BYTES as u32)];
        let head = self.wire.send(PacketType::Read, &head)?;
        let stat = self.wire.send(PacketType::StatOpened, &[file.part()])?;
        Ok(Begun { sent: [head, stat], handle: file })
    }

    fn finish_reading(&self, begun: Begun<[Sent; 2]>, most_bytes: u64) -> SftpResult<Option<Vec<u8>>> {
        let Begun { handle: file, sent: [head, stat] } = begun;
        // Return a refusal only after the other reply was read. On a lost connection no more replies arrive.
        let head = match self.wire.answer(head) {
            Err(SftpFault::Server(error)) => return Err(error.into()),
            head => head,
        };
        let stat = self.wire.answer(stat);
        let contents = self.read_on(&file, head, stat, most_bytes);
        self.leave(&file);
        contents
    }

    /// Reads the rest of a file whose beginning and size were requested.
    fn read_on(
        &self,
        file: &Handle,
        head: SftpResult<Reply>,
        stat: SftpResult<Reply>,
        most_bytes: u64,
    ) -> SftpResult<Option<Vec<u8>>> {
        let size_bytes = self.size_of(stat?)?;
        if size_bytes > most_bytes {
            return Ok(None);
        }
        let mut bytes = match head? {
            Reply::Data(data) if data.len() <= PIECE_BYTES => data,
            Reply::End => Vec::new(),
            _ => return Err(self.wire.protocol_error().into()),
        };
        let size = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        // The reported size is not trusted: memory is allocated in steps as the data arrives.
        while bytes.len() < size {
            let known = bytes.len();
            bytes.resize(size.min(known + PLAUSIBLE_BYTES), 0);
            let read = self.fill(file, known as u64, &mut bytes[known..])?;
            let is_short = known + read < bytes.len();
            bytes.truncate(known + read);
            if is_short {
                break;
            }
        }
        Ok(Some(bytes))
    }
}
