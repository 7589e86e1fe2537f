//! Fields that several services have: times, page sizes, texts that may be missing.

use tonic::Status;

use super::status::invalid;
use crate::{
    failed_message::{Time, is_known_to_databases},
    gateway::page,
};

/// A text; empty means none.
pub fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The size of a page.
pub fn page_size(size: i32) -> Result<u32, Status> {
    page::size(size).ok_or_else(|| invalid("page_size", "must not be negative"))
}

/// A moment that something in the database is compared with.
pub fn read_time(
    field: &'static str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<Time>, Status> {
    let Some(time) = time else {
        return Ok(None);
    };
    let nanos = u32::try_from(time.nanos).ok();
    let read = nanos.and_then(|nanos| Time::from_timestamp(time.seconds, nanos));
    match read.filter(is_known_to_databases) {
        Some(time) => Ok(Some(time)),
        None => Err(invalid(field, "must be from 1970 to 9999")),
    }
}

pub fn write_time(time: Time) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    }
}
