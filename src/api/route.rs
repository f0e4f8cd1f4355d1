//! A route with who may use it: the two are declared together, so that none is reachable without a decision.

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use beampipe_domain::account::Role;

use super::Api;

/// The prefix of every route.
pub const BASE: &str = "/api/v2";

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Anybody if the metrics are public, else a viewer.
    Metrics,
    Viewer,
    Operator,
    Admin,
}

impl Access {
    /// The role that is needed; `None` when nobody is asked.
    pub fn role(self, metrics_public: bool) -> Option<Role> {
        match self {
            Self::Open => None,
            Self::Metrics if metrics_public => None,
            Self::Metrics | Self::Viewer => Some(Role::Viewer),
            Self::Operator => Some(Role::Operator),
            Self::Admin => Some(Role::Admin),
        }
    }
}

/// One method of one path.
pub struct Route {
    pub method: Method,
    /// Below [`BASE`], as the router spells it: `/executions/{id}`.
    pub path: &'static str,
    pub access: Access,
    pub handler: MethodRouter<Api>,
}

impl Route {
    fn new<H, T>(method: Method, filter: MethodFilter, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self { method, path, access, handler: on(filter, handler) }
    }

    pub fn get<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::GET, MethodFilter::GET, path, access, handler)
    }

    pub fn post<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::POST, MethodFilter::POST, path, access, handler)
    }

    pub fn patch<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::PATCH, MethodFilter::PATCH, path, access, handler)
    }

    pub fn delete<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self::new(Method::DELETE, MethodFilter::DELETE, path, access, handler)
    }
}

/// The label of a matched path: `/executions/:id`.
pub fn label(matched: &str) -> String {
    let path = matched.strip_prefix(BASE).unwrap_or(matched);
    path.chars()
        .filter_map(|c| match c {
            '{' => Some(':'),
            '}' => None,
            c => Some(c),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_matched_route_without_braces() {
        assert_eq!(label("/api/v2/executions/{id}/artifacts/{sha256}"), "/executions/:id/artifacts/:sha256");
    }
}
