//! The table of paths: each entry is a handler, and from the handler's own types comes what `/openapi.json` says of it.
//! So the description cannot be another than the program.

use std::future::Future;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::guard::{self, Access};
use super::routes::{Problem, json_response};
use super::site::Site;

/// Paths and their description, as they are added.
pub(super) struct Api {
    site: Site,
    router: Router<Site>,
    paths: Map<String, Value>,
    schemas: SchemaGenerator,
}

/// A path as people read it.
#[derive(Clone, Copy)]
pub(super) struct About {
    pub path: &'static str,
    pub summary: &'static str,
    pub access: Access,
}

impl Api {
    pub fn new(site: Site) -> Self {
        let settings = SchemaSettings::draft2020_12()
            .for_serialize()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        Self { site, router: Router::new(), paths: Map::new(), schemas: settings.into_generator() }
    }

    /// A path that answers JSON: `P` are its parameters, in the path or behind `?`, `T` is the answer.
    pub fn get<P, T, F, H>(self, about: About, handler: H) -> Self
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        T: Serialize + JsonSchema + Send + 'static,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
        H: Fn(Site, P) -> F + Clone + Send + Sync + 'static,
    {
        let route =
            get(move |State(site): State<Site>, path: RawPathParams, uri: Uri| async move {
                let (parameters, pretty) = match parameters::<P>(&path, &uri) {
                    Ok(parameters) => parameters,
                    Err(problem) => return problem.into_response(),
                };
                match handler(site, parameters).await {
                    Ok(answer) => json_response(StatusCode::OK, &answer, pretty),
                    Err(problem) => problem.into_response(),
                }
            });
        let parameters = self.parameters::<P>(about.path);
        let mut api = self;
        let answer = api.schemas.subschema_for::<T>();
        let answer = json!({"description": "the answer", "content": {"application/json": {"schema": answer}}});
        api.add("get", about, parameters, None, answer, route)
    }

    /// A path that changes something: `B` is its JSON body, `T` the answer.
    pub fn post<B, T, F, H>(mut self, about: About, handler: H) -> Self
    where
        B: DeserializeOwned + JsonSchema + std::fmt::Debug + Send + 'static,
        T: Serialize + JsonSchema + Send + 'static,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
        H: Fn(Site, B) -> F + Clone + Send + Sync + 'static,
    {
        let path = about.path;
        let route =
            post(move |State(site): State<Site>, headers: HeaderMap, body: Bytes| async move {
                let body = match body_of::<B>(&headers, &body) {
                    Ok(body) => body,
                    Err(problem) => return refused(path, problem),
                };
                // Who asked stands in the span that the guard has opened.
                let order = format!("{body:?}");
                match handler(site, body).await {
                    Ok(answer) => {
                        tracing::info!(
                            code = "CONTROL",
                            path,
                            order,
                            result = "done",
                            "order over HTTP"
                        );
                        json_response(StatusCode::OK, &answer, false)
                    }
                    Err(problem) => refused(path, problem),
                }
            });
        let body = self.schemas.subschema_for::<B>();
        let body = json!({"required": true, "content": {"application/json": {"schema": body}}});
        let answer = self.schemas.subschema_for::<T>();
        let answer = json!({"description": "the outcome", "content": {"application/json": {"schema": answer}}});
        self.add("post", about, Vec::new(), Some(body), answer, route)
    }

    /// A path whose answer is not made of a type here: `content` are the kinds of content with what is known of each.
    pub fn other<H, A>(self, about: About, parameters: &[&str], content: &Value, handler: H) -> Self
    where
        H: Handler<A, Site>,
        A: 'static,
    {
        let query = parameters.iter().map(
            |name| json!({"name": name, "in": "query", "required": false, "schema": {"type": "string"}}),
        );
        let parameters = query.collect();
        let answer = json!({"description": "the answer", "content": content});
        self.add("get", about, parameters, None, answer, get(handler))
    }

    fn add(
        mut self,
        method: &'static str,
        about: About,
        parameters: Vec<Value>,
        body: Option<Value>,
        answer: Value,
        route: MethodRouter<Site>,
    ) -> Self {
        let About { path, summary, access } = about;
        let problem = self.schemas.subschema_for::<ProblemBody>();
        let mut operation = json!({
            "summary": summary,
            "parameters": parameters,
            "responses": {
                "200": answer,
                "default": {
                    "description": "what went wrong",
                    "content": {"application/problem+json": {"schema": problem}},
                },
            },
        });
        if let (Some(body), Some(fields)) = (body, operation.as_object_mut()) {
            fields.insert("requestBody".to_owned(), body);
        }
        if let (Access::Change, Some(fields)) = (access, operation.as_object_mut()) {
            fields.insert("security".to_owned(), json!([{"token": []}]));
        }
        let place = self.paths.entry(path).or_insert_with(|| json!({}));
        if let Some(place) = place.as_object_mut() {
            place.insert(method.to_owned(), operation);
        }
        let site = self.site.clone();
        let layer = from_fn_with_state(site, move |site: State<Site>, request: Request, next| {
            guard::guard(site, access, request, next)
        });
        self.router = self.router.route(path, route.layer(layer));
        self
    }

    fn parameters<P: JsonSchema>(&self, path: &str) -> Vec<Value> {
        let settings =
            SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<P>();
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let mut parameters: Vec<Value> = schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(name, schema)| {
                let in_path = path.contains(&format!("{{{name}}}"));
                json!({
                    "name": name,
                    "in": if in_path { "path" } else { "query" },
                    "required": in_path || required.contains(&name.as_str()),
                    "description": schema.get("description").cloned().unwrap_or_default(),
                    "schema": schema,
                })
            })
            .collect();
        parameters.push(json!({
            "name": "pretty", "in": "query", "required": false,
            "description": "indent the answer", "schema": {"type": "string"},
        }));
        parameters
    }

    /// The router, and the description of all its paths.
    pub fn finish(mut self) -> (Router<Site>, Value) {
        let schemas: Map<String, Value> = self.schemas.take_definitions(true).into_iter().collect();
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "monasca-persister",
                "version": env!("CARGO_PKG_VERSION"),
                "description": crate::GUARANTEE,
            },
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        });
        (self.router, document)
    }
}

/// The body of an error: `application/problem+json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ProblemBody {
    /// What is wrong, the same words each time.
    pub title: &'static str,
    /// Status of the answer.
    pub status: u16,
    /// What was wrong this time.
    pub detail: String,
}

/// What was sent is told to who sent it, and not in the log: nobody knows what is in it.
fn refused(path: &str, problem: Problem) -> Response {
    let (status, result) = (problem.status.as_u16(), problem.title);
    tracing::warn!(code = "CONTROL", path, result, status, "order over HTTP");
    problem.into_response()
}

/// Parameters of the path and behind `?` as one value, and whether the answer is to be indented.
fn parameters<P: DeserializeOwned>(path: &RawPathParams, uri: &Uri) -> Result<(P, bool), Problem> {
    let mut pretty = false;
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    for (name, value) in path {
        pairs.append_pair(name, value);
    }
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if name == "pretty" {
            // `?pretty` and `?pretty=true` ask for it, `?pretty=false` does not.
            pretty = value != "false";
        } else {
            pairs.append_pair(&name, &value);
        }
    }
    let uri: Uri = format!("/?{}", pairs.finish())
        .parse()
        .map_err(|_| Problem::bad_parameter("not a query".to_owned()))?;
    let query = axum::extract::Query::<P>::try_from_uri(&uri).map_err(|error| {
        Problem::bad_parameter(
            error.body_text().replace("Failed to deserialize query string: ", ""),
        )
    })?;
    Ok((query.0, pretty))
}

fn body_of<B: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<B, Problem> {
    // A page of another site can send a form without asking, but not JSON.
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|content| content.starts_with("application/json")) {
        return Err(Problem {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            title: "not JSON",
            detail: "the body must be JSON, and say so: Content-Type: application/json".to_owned(),
        });
    }
    serde_json::from_slice(body).map_err(|error| Problem {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        title: "bad body",
        detail: error.to_string(),
    })
}
