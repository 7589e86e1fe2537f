//! Lists that come in pages.

use super::{Exit, complain};

/// The most that the gateway answers at a time.
pub(super) const PAGE: u64 = 1_000;
/// As a limit: none.
pub(super) const ALL: u64 = u64::MAX;

/// Hands so many rows to `each`, asking for one page after the other, each of at most `most` rows. Whether there are more rows.
///
/// `ask` is given a page's size and token, and answers with its rows and the next page's token.
pub(super) async fn pages<T>(
    limit: u64,
    most: u64,
    mut ask: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), Exit>,
    mut each: impl FnMut(T) -> Result<(), Exit>,
) -> Result<bool, Exit> {
    let mut left = limit;
    let mut token = String::new();
    loop {
        // One more than is wanted tells whether there are more.
        let size = left.saturating_add(1).min(most);
        let (rows, next) = ask(i32::try_from(size).unwrap_or(i32::MAX), token).await?;
        for row in rows {
            if left == 0 {
                return Ok(true);
            }
            left -= 1;
            each(row)?;
        }
        if next.is_empty() {
            return Ok(false);
        }
        token = next;
    }
}

/// Says that a list goes on, and what besides --limit helps.
pub(super) fn say_more(limit: u64, helps: &str) {
    complain(&format!(
        "there are more than these {limit}: --limit, or {helps}"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of 5 rows is handed out with a limit, the sizes asked for, and whether there are more.
    async fn of_five(limit: u64) -> (Vec<u64>, Vec<i32>, bool) {
        let (mut rows, mut sizes) = (Vec::new(), Vec::new());
        let ask = async |size: i32, token: String| {
            sizes.push(size);
            let from: u64 = token.parse().unwrap_or(0);
            let to = (from + u64::try_from(size).expect("a size")).min(5);
            let next = if to < 5 {
                to.to_string()
            } else {
                String::new()
            };
            Ok(((from..to).collect(), next))
        };
        let each = |row| {
            rows.push(row);
            Ok(())
        };
        let more = pages(limit, 2, ask, each).await;
        let more = more.unwrap_or_else(|_| panic!("nothing fails"));
        (rows, sizes, more)
    }

    #[tokio::test]
    async fn as_many_rows_as_wanted_and_whether_there_are_more() {
        assert_eq!(
            of_five(ALL).await,
            (vec![0, 1, 2, 3, 4], vec![2, 2, 2], false)
        );
        assert_eq!(
            of_five(5).await,
            (vec![0, 1, 2, 3, 4], vec![2, 2, 2], false)
        );
        assert_eq!(of_five(4).await, (vec![0, 1, 2, 3], vec![2, 2, 1], true));
        assert_eq!(of_five(1).await, (vec![0], vec![2], true));
    }
}
