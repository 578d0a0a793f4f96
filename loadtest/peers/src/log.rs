//! What the publishers sent and not every subscriber has: one buffer for all of them, in whole frames, bounded. Pure.

/// More than this is not kept: who is further behind loses the oldest.
const BYTES_MAX: u64 = 1 << 20;

/// Bytes from `base` on; positions count from the start of the program.
#[derive(Debug, Default)]
pub struct Log {
    base: u64,
    bytes: Vec<u8>,
}

impl Log {
    /// Behind the newest byte.
    pub fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// Adds whole frames.
    pub fn append(&mut self, frames: &[u8]) {
        self.bytes.extend_from_slice(frames);
    }

    /// What a reader at `position` has not got. The position is one that [`keep_up`](Self::keep_up) left.
    pub fn from(&self, position: u64) -> &[u8] {
        let start = usize::try_from(position.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.bytes.get(start..).unwrap_or_default()
    }

    /// Moves a reader that is too far behind to the newest frame. What it still needs of the frame that it is in goes to
    /// `rest`.
    pub fn keep_up(&self, position: &mut u64, rest: &mut Vec<u8>) {
        if self.end() - *position <= BYTES_MAX {
            return;
        }
        let behind = self.from(*position);
        let mut frame = self.base;
        // The log begins with a frame, so that the one at the position can be found from there.
        for length in frames(&self.bytes) {
            if frame >= *position {
                break;
            }
            frame += length as u64;
        }
        let missing = usize::try_from(frame.saturating_sub(*position)).unwrap_or(0);
        rest.extend_from_slice(&behind[..missing.min(behind.len())]);
        *position = self.end();
    }

    /// Forgets what every reader has; `slowest` is the least position of them.
    pub fn forget(&mut self, slowest: u64) {
        if slowest >= self.end() {
            self.base = self.end();
            self.bytes.clear();
        } else if slowest - self.base > BYTES_MAX {
            let done = slowest - self.base;
            let mut cut = 0;
            for length in frames(&self.bytes) {
                if (cut + length) as u64 > done {
                    break;
                }
                cut += length;
            }
            self.bytes.drain(..cut);
            self.base += cut as u64;
        }
    }
}

/// Length of the whole frames at the start of `bytes`.
pub fn whole(bytes: &[u8]) -> usize {
    frames(bytes).sum()
}

/// Lengths of the whole frames in `bytes`: unmasked binary messages, as a server sends them. All else ends the list.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = match *rest {
            [0x82, 126, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
            [0x82, short @ ..126, ..] => 2 + usize::from(short),
            _ => return None,
        };
        rest = rest.get(length..)?;
        Some(length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(fill: u8) -> Vec<u8> {
        [&[0x82, 126, 0, 128][..], &[fill; 128]].concat()
    }

    #[test]
    fn only_whole_frames_count() {
        let bytes = [frame(1), vec![0x82, 3, 1, 2, 3], frame(2)].concat();
        assert_eq!(whole(&bytes), 132 + 5 + 132);
        assert_eq!(whole(&bytes[..bytes.len() - 1]), 132 + 5);
        assert_eq!((whole(&[]), whole(&[0x82]), whole(&[0x82, 126, 0]), whole(&[0x81, 0])), (0, 0, 0, 0));
    }

    #[test]
    fn who_is_too_far_behind_gets_the_rest_of_its_frame_and_then_the_newest() {
        let mut log = Log::default();
        let mut fast = 0;
        let mut slow = 132 + 10;
        for fill in 0..16_000u32 {
            log.append(&frame((fill % 251) as u8));
            fast = log.end();
        }
        let mut rest = Vec::new();
        log.keep_up(&mut slow, &mut rest);
        assert_eq!((slow, rest.len()), (log.end(), 132 - 10));
        assert!(rest.iter().all(|&byte| byte == 1));
        rest.clear();
        log.keep_up(&mut fast, &mut rest);
        assert!(rest.is_empty() && log.from(fast).is_empty());
        // At a border of two frames nothing is left over.
        let mut border = 132 * 7;
        log.keep_up(&mut border, &mut rest);
        assert!(rest.is_empty());
    }

    #[test]
    fn what_everybody_has_is_forgotten() {
        let mut log = Log::default();
        for _ in 0..20_000 {
            log.append(&frame(5));
        }
        let position = log.end() - 140;
        log.forget(position);
        assert!(log.bytes.len() < 2 * 132 + 140 && log.from(position).len() == 140, "{}", log.bytes.len());
        assert_eq!(whole(&log.bytes), log.bytes.len(), "it begins with a frame");
        log.forget(log.end());
        assert!(log.bytes.is_empty());
    }
}
