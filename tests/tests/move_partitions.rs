//! Nodes lose each other in the middle of a move: real processes, each in a network namespace. Needs
//! root; elsewhere these tests say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::sync::Arc;
use std::time::Duration;

use ringfold_tests::cluster::Settings;
use ringfold_tests::moving::{self, Moving, PROGRESS_MAX, REST_MAX};
use ringfold_tests::netns::Net;

/// Longer than an election, and than a step of a move may take.
const CUT: Duration = Duration::from_secs(6);

fn network(nodes: usize) -> Option<Arc<Net>> {
    match Net::new(nodes) {
        Ok(net) => Some(net),
        Err(why) => {
            eprintln!("NOT RUN: {why}");
            None
        }
    }
}

/// A checkpoint of one partition takes some seconds.
fn settings(net: &Arc<Net>, nodes: usize, partitions: u32) -> Settings {
    Settings { nodes, net: Some(net.clone()), ..moving::settings(partitions, "1MiB") }
}

/// In the middle of a move `cut` makes its cuts; they heal after some seconds.
async fn lose(m: &Moving, net: &Net, what: &str, cut: impl FnOnce(&Net)) {
    m.wait_copying().await;
    cut(net);
    eprintln!("cut off: {what}");
    tokio::time::sleep(CUT).await;
    net.heal();
    m.running.progress(20, PROGRESS_MAX).await;
}

#[test]
fn the_receiver_the_old_owner_and_the_leader_of_moves_are_cut_off_in_the_middle() {
    let Some(net) = network(4) else { return };
    net.block_on(async {
        let mut m = Moving::start(settings(&net, 3, 8), 81).await;
        let fourth = m.cluster.grow();
        m.running.use_nodes(&m.cluster);
        lose(&m, &net, "the receiver", |n| n.isolate(fourth)).await;
        let leader = m.cluster.meta_leader().await;
        lose(&m, &net, "the leader of the moves", |n| n.isolate(leader)).await;
        m.cluster.wait_at_rest(4, REST_MAX).await;

        let leaver = m.cluster.meta_leader().await;
        m.cluster.drain(leaver).await.unwrap();
        lose(&m, &net, "the old owner", |n| n.isolate(leaver)).await;
        m.cluster.wait_at_rest(3, REST_MAX).await;
        m.cluster.remove(leaver, REST_MAX).await;
        m.running.use_nodes(&m.cluster);
        m.end(3).await;
    });
}

#[test]
fn two_of_five_nodes_are_cut_off_together_in_the_middle_of_moves() {
    let Some(net) = network(6) else { return };
    net.block_on(async {
        let mut m = Moving::start(settings(&net, 5, 8), 82).await;
        let sixth = m.cluster.grow();
        m.running.use_nodes(&m.cluster);
        let two = [m.cluster.meta_leader().await, sixth];
        lose(&m, &net, "the receiver with the leader of the moves", |n| {
            for a in two {
                (0..6).filter(|b| !two.contains(b)).for_each(|b| n.partition(a, b));
            }
        })
        .await;
        m.cluster.wait_at_rest(6, REST_MAX).await;
        // Only one direction of one pair: what the leaver says to the leader of the moves is lost.
        let leader = m.cluster.meta_leader().await;
        let leaver = (0..5).find(|n| *n != leader).unwrap();
        m.cluster.drain(leaver).await.unwrap();
        lose(&m, &net, "one direction", |n| n.cut(leaver, leader)).await;
        m.cluster.wait_at_rest(5, REST_MAX).await;
        m.cluster.remove(leaver, REST_MAX).await;
        m.running.use_nodes(&m.cluster);
        m.end(5).await;
    });
}
