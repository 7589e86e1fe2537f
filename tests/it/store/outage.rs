//! A database server that hangs, crashes or restarts: callers are told within seconds, and the store comes back by itself.

use std::time::Duration;

use courtier::{
    failed_message::Death,
    store::{Ack, Error, Filter, Store},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    database::Own,
    deaths::{LEASE, at_once, claim, claim_up_to, collect, collected, death},
};
use crate::{
    harness::{PATIENCE, eventually},
    instance::Instance,
};

macro_rules! on_own_servers {
    ($($case:ident)+) => {
        on_own_servers! { @of mariadb $($case)+ }
        on_own_servers! { @of postgres $($case)+ }
    };
    (@of $kind:ident $($case:ident)+) => {
        mod $kind {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "starts a database server of its own: run make test"]
            async fn $case() {
                Box::pin(super::$case(stringify!($kind))).await;
            })+
        }
    };
}

on_own_servers! {
    a_server_that_hangs_is_found_out_and_comes_back
    a_server_that_crashes_loses_nothing_that_was_stored
    a_server_that_comes_later_is_found
}

/// A store on a server of its own.
async fn open(kind: &str) -> (Instance, Store) {
    let instance = Instance::database(kind).await;
    let own = Own::at(instance.url.clone()).await;
    let store = own.store().await;
    (instance, store)
}

/// Each kind of call, whose answer must be that the database is away.
async fn all_calls_are_answered(store: &Store) {
    let id = Uuid::now_v7();
    let (death, filter) = (death("work"), Filter::default());
    let deaths = std::slice::from_ref(&death);
    let acks = [Ack {
        id,
        attempt: 2,
        dropped: false,
        queue: "work".to_owned(),
    }];
    let answers = async {
        tokio::join!(
            async { store.now().await.map(|_| ()) },
            async { store.collect(deaths, at_once).await.map(|_| ()) },
            async { claim_up_to(store, "work", 9).await.map(|_| ()) },
            async { store.claim_one(id, LEASE).await.map(|_| ()) },
            async { store.acked(&acks).await },
            async { store.failed_messages(&filter, None, 9).await.map(|_| ()) },
            async { store.reap().await.map(|_| ()) },
            async { store.step_operation().await.map(|_| ()) },
        )
    };
    let answers = timeout(PATIENCE, answers).await.expect("answers");
    let (a, b, c, d, e, f, g, h) = answers;
    for answer in [a, b, c, d, e, f, g, h] {
        assert!(matches!(answer, Err(Error::Down)), "{answer:?}");
    }
}

async fn is_back(store: &Store) {
    let back = timeout(PATIENCE, store.watch().up()).await;
    assert!(back.expect("it comes back"), "it is not closed");
}

async fn a_server_that_hangs_is_found_out_and_comes_back(kind: &str) {
    let (instance, store) = open(kind).await;
    let row = collected(&store, "work").await;
    instance.pause().await;
    all_calls_are_answered(&store).await;
    eventually("it is found out", || async { !store.is_up() }).await;
    all_calls_are_answered(&store).await;
    instance.resume().await;
    is_back(&store).await;
    eventually("nobody holds the row", || async {
        let rows = store.failed_messages(&Filter::default(), None, 9).await;
        rows.is_ok_and(|page| page.rows.len() == 1)
    })
    .await;
    assert_eq!(claim(&store, "work").await.message.id, row.id);
    store.close().await;
}

async fn a_server_that_crashes_loses_nothing_that_was_stored(kind: &str) {
    let (instance, store) = open(kind).await;
    let enough = CancellationToken::new();
    let collecting: Vec<_> = (0..4)
        .map(|_| {
            let (store, enough) = (store.clone(), enough.clone());
            tokio::spawn(async move {
                let mut stored = Vec::new();
                while !enough.is_cancelled() {
                    let death = death("work");
                    until_stored(&store, &death).await;
                    stored.push(death.id);
                }
                stored
            })
        })
        .collect();
    let count = async || store.count(&Filter::default()).await;
    for crash in [true, false, true] {
        let before = timeout(PATIENCE, async {
            loop {
                if let Ok(count) = count().await {
                    return count;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let before = before.await.expect("it is there");
        eventually("some more are stored", || async {
            count().await.is_ok_and(|count| count > before)
        })
        .await;
        if crash {
            instance.kill().await;
            all_calls_are_answered(&store).await;
        }
        instance.restart().await;
        is_back(&store).await;
    }
    enough.cancel();
    let mut stored = 0;
    for task in collecting {
        for id in task.await.expect("no panic") {
            store.failed_message(id).await.expect("it was stored");
            stored += 1;
        }
    }
    // Those whose commit was not answered were collected again, and recognised.
    assert_eq!(count().await.expect("count"), stored);
    store.close().await;
}

async fn until_stored(store: &Store, death: &Death) {
    let deaths = std::slice::from_ref(death);
    let stored = timeout(PATIENCE * 3, async {
        loop {
            match store.collect(deaths, at_once).await {
                Ok(_) => return,
                Err(Error::Down) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    stored.await.expect("it is stored in the end");
}

async fn a_server_that_comes_later_is_found(kind: &str) {
    let instance = Instance::database(kind).await;
    let own = Own::at(instance.url.clone()).await;
    instance.stop().await;
    let store = own.store().await;
    assert!(!store.is_up());
    all_calls_are_answered(&store).await;
    instance.restart().await;
    is_back(&store).await;
    assert_eq!(
        collect(&store, &death("work")).await,
        courtier::store::Collected::New
    );
    store.close().await;
}
