//! The bodies of answers.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::Interval;

use super::pattern::Pattern;

pub enum Answer {
    Whole(Option<Bytes>),
    Bulk(Pattern, u64),
    /// An event at each tick, forever.
    Watch(Interval, Bytes),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Bulk(pattern, _) => Poll::Ready(pattern.next().map(|block| Ok(Frame::data(block)))),
            Self::Watch(interval, event) => interval.poll_tick(cx).map(|_| Some(Ok(Frame::data(event.clone())))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Bulk(_, bytes) => SizeHint::with_exact(*bytes),
            Self::Watch(..) => SizeHint::default(),
        }
    }
}
