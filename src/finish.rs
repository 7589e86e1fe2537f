//! Work that goes on when whoever asked for it goes away.

use tokio::task::JoinError;

/// Carries work out to its end, also when nobody waits for it any more. `None`: the runtime ends first.
pub async fn finish<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    match tokio::spawn(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => Some(done),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => None,
    }
}
