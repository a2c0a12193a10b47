//! Sees a server's GOAWAY. hyper and tonic keep it to themselves while a stream goes on, and a control plane lets the
//! stream go on for a while, then cuts it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Length of a frame's header (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// Type of the frame GOAWAY (RFC 9113, section 6.8).
const GOAWAY: u8 = 7;

/// Follows the frames of one direction of an HTTP/2 connection.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl Frames {
    /// Takes the next bytes in; whether a GOAWAY began in them.
    fn goes_away(&mut self, mut bytes: &[u8]) -> bool {
        let mut found = false;
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            for (to, from) in self.header.iter_mut().skip(self.have).zip(bytes) {
                *to = *from;
            }
            let taken = (HEADER - self.have).min(bytes.len());
            self.have += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.have == HEADER {
                let [a, b, c, kind, ..] = self.header;
                self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
                self.have = 0;
                found |= kind == GOAWAY;
            }
        }
        found
    }
}

/// A connection whose inbound frames are followed; all bytes pass as they are.
#[derive(Debug)]
pub(super) struct Observed<T> {
    inner: T,
    frames: Frames,
    goaway: Arc<Notify>,
}

impl<T> Observed<T> {
    /// Around a connection that has said nothing yet; also what is told once the server says GOAWAY.
    pub(super) fn new(inner: T) -> (Observed<T>, Arc<Notify>) {
        let goaway = Arc::new(Notify::new());
        (Observed { inner, frames: Frames::default(), goaway: goaway.clone() }, goaway)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Observed<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
        if this.frames.goes_away(buf.filled().get(before..).unwrap_or_default()) {
            this.goaway.notify_one();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Observed<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        [&[a, b, c, kind, 0, 0, 0, 0, 1][..], payload].concat()
    }

    proptest! {
        /// Cut anywhere, and whatever stands in payloads.
        #[test]
        fn a_goaway_is_seen_exactly_where_it_is(
            frames in proptest::collection::vec((0u8..10, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            // Shorter than a header: two frames never begin in one piece.
            cuts in proptest::collection::vec(1usize..HEADER, 1..20),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
            let wanted = frames.iter().filter(|(kind, _)| *kind == GOAWAY).count();
            let (mut state, mut seen, mut rest) = (Frames::default(), 0, &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                seen += usize::from(state.goes_away(now));
                rest = later;
            }
            prop_assert_eq!(seen, wanted);
        }
    }
}
