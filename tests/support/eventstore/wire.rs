//! The protocol as it is generated from the client's proto files.

// Their comments are theirs.
#![allow(clippy::all, dead_code, rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub mod event_store {
    pub mod client {
        tonic::include_proto!("event_store.client");
        pub mod streams {
            tonic::include_proto!("event_store.client.streams");
        }
        pub mod gossip {
            tonic::include_proto!("event_store.client.gossip");
        }
        pub mod server_features {
            tonic::include_proto!("event_store.client.server_features");
        }
    }
}

pub use event_store::client::*;
