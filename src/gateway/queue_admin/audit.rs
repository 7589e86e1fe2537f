//! The line in the log that each change has.

use super::Error;
use crate::{finish::to_the_end, text};

/// Bytes of a target or an error in an audit line. A name that is refused may be of any length.
const MAX_NOTED: usize = 1024;

/// Carries a change out [`to_the_end`], and writes its line in the log, whatever became of it. The caller goes there as soon as
/// callers have names.
pub(super) async fn audited<T: Send + 'static>(
    action: &'static str,
    target: String,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let target = text::cut(&target, MAX_NOTED);
    to_the_end(async move {
        let done = work.await;
        match &done {
            Ok(_) => tracing::info!(target: "courtier::audit", action, target, "done"),
            Err(error) => {
                let error = text::cut(&error.to_string(), MAX_NOTED);
                tracing::info!(target: "courtier::audit", action, target, %error, "not done");
            }
        }
        done
    })
    .await
}
