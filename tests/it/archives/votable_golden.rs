//! VOTables as a real service (DaCHS 2.7) sent them, and documents that must be refused.

use beampipe::archives::tap::TapError;
use beampipe::archives::tap::votable::{Document, Status, read};
use proptest::prelude::*;
use serde_json::json;

fn golden(name: &str) -> Document {
    let path = format!("{}/tests/golden/votable/{name}", env!("CARGO_MANIFEST_DIR"));
    read(&std::fs::read(path).unwrap(), 100).unwrap()
}

#[test]
fn one_answer_is_the_same_in_its_three_encodings() {
    let tables: Vec<_> = ["dachs-td.xml", "dachs-binary.xml", "dachs-b2.xml"]
        .into_iter()
        .map(|name| {
            let document = golden(name);
            assert_eq!(document.status, Status::Ok);
            document.table.unwrap()
        })
        .collect();
    assert_eq!(tables[0].rows, tables[1].rows);
    assert_eq!(tables[0].rows, tables[2].rows);
    assert_eq!(
        json!(tables[0].rows),
        json!([
            ["HIPASSJ1250-20_D_beam07_10arc_split.ms.tar", -20.4, 1, 22_020_096, null],
            ["HIPASSJ1245-00_C_beam02_10arc_split.ms.tar", -0.45, 1, 19_398_656, "2023-10-20T00:00:00"],
            ["HIPASSJ1245-00_D_beam09_10arc_split.ms.tar", -0.45, 1, 18_350_080, "2023-10-20T00:00:00"],
        ])
    );
    let column = &tables[0].columns[tables[0].column("S_DEC").unwrap()];
    assert_eq!((column.datatype.as_str(), column.unit.as_deref()), ("double", Some("deg")));
}

#[test]
fn an_overflow_after_the_table_is_noticed() {
    let document = golden("dachs-overflow.xml");
    assert_eq!(document.status, Status::Overflow);
    assert!(document.table.is_some());
}

#[test]
fn an_error_has_no_table_but_a_reason() {
    let document = golden("dachs-error.xml");
    assert!(
        matches!(&document.status, Status::Error(reason) if reason.starts_with("Field query: Could not parse"))
    );
    assert_eq!(document.table, None);
}

#[test]
fn a_status_after_the_table_counts_and_an_error_is_never_taken_back() {
    for (first, last, status) in [
        ("OK", "OVERFLOW", Status::Overflow),
        ("OVERFLOW", "OK", Status::Overflow),
        ("OK", "ERROR", Status::Error("why".into())),
        ("ERROR", "OK", Status::Error("why".into())),
        ("ok", "ok", Status::Ok),
        ("OK", "PERHAPS", Status::Error("unknown QUERY_STATUS `PERHAPS`".into())),
    ] {
        let text = document(&format!(
            "<INFO name='QUERY_STATUS' value='{first}'>why</INFO>{}<INFO name='QUERY_STATUS' value='{last}'>why</INFO>",
            table("<TR><TD>1</TD></TR>")
        ));
        assert_eq!(read(text.as_bytes(), 10).unwrap().status, status);
    }
}

#[test]
fn tables_of_meta_resources_are_passed_over() {
    let text = format!(
        "<v:VOTABLE xmlns:v='x'><v:RESOURCE type='meta'>{}</v:RESOURCE><v:RESOURCE type='results'>{}</v:RESOURCE></v:VOTABLE>",
        table("<TR><TD>1</TD></TR>"),
        table("<TR><TD>2</TD></TR>")
    );
    assert_eq!(read(text.as_bytes(), 10).unwrap().table.unwrap().rows, [[json!(2)]]);
}

#[test]
fn references_cdata_and_comments_are_text_and_hexadecimal_is_a_number() {
    let text = document(
        "<TABLE><FIELD name='a' datatype='char' arraysize='*'/><FIELD name='b' datatype='int'/><DATA><TABLEDATA>
         <TR><TD>a&amp;b &#233;<!-- no --><![CDATA[<c>]]></TD><TD>0x1F</TD></TR></TABLEDATA></DATA></TABLE>",
    );
    assert_eq!(read(text.as_bytes(), 10).unwrap().table.unwrap().rows, [[json!("a&b é<c>"), json!(31)]]);
}

#[test]
fn a_table_without_data_has_no_rows() {
    let text = document("<TABLE><FIELD name='a' datatype='int'/></TABLE>");
    let table = read(text.as_bytes(), 10).unwrap().table.unwrap();
    assert_eq!((table.columns.len(), table.rows.len()), (1, 0));
}

#[test]
fn more_rows_than_allowed_are_an_overflow() {
    let rows = "<TR><TD>1</TD></TR>".repeat(3);
    let text = document(&table(&rows));
    assert_eq!(read(text.as_bytes(), 3).unwrap().table.unwrap().rows.len(), 3);
    assert!(matches!(read(text.as_bytes(), 2), Err(TapError::Overflow { rows: 2 })));
}

#[test]
fn what_cannot_be_trusted_or_read_is_malformed_and_says_why() {
    let deep = format!("<VOTABLE>{}", "<G>".repeat(100));
    let stream = |attributes: &str, content: &str| {
        document(&format!(
            "<TABLE><FIELD name='a' datatype='int'/><DATA><BINARY><STREAM {attributes}>{content}</STREAM></BINARY></DATA></TABLE>"
        ))
    };
    for (text, why) in [
        (String::new(), "empty document"),
        ("<html/>".into(), "not a VOTable"),
        (deep, "elements deep"),
        (
            "<!DOCTYPE v [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><VOTABLE><RESOURCE/></VOTABLE>".into(),
            "document type",
        ),
        (document("<INFO name='a' value='b'>&x;</INFO>"), "unknown entity"),
        (document(&table("<TR><TD>1</TD><TD>2</TD></TR>")), "too many cells"),
        (document(&table("<TR></TR>")), "0 cells for 1 columns"),
        (document(&table("<TR><TD>one</TD></TR>")), "`one` is not a int"),
        (document(&table("<TR><TD>3000000000</TD></TR>")), "is not a int"),
        (document(&table("<TR><TD encoding='base64'>AAAA</TD></TR>")), "encoded TD"),
        (document("<TABLE><FIELD name='a' datatype='string'/></TABLE>"), "datatype `string`"),
        (document("<TABLE><FIELD name='a' datatype='int' arraysize='x'/></TABLE>"), "arraysize `x`"),
        (document("<TABLE><FIELD datatype='int'/></TABLE>"), "no name"),
        (stream("href='http://elsewhere/'", ""), "not followed"),
        (stream("encoding='gzip'", "AAAA"), "encoding `gzip`"),
        (stream("encoding='base64'", "AAAA"), "ends within the row"),
        (stream("encoding='base64'", "*"), "the STREAM"),
        ("<VOTABLE><RESOURCE>".into(), "ends within `RESOURCE`"),
        ("<VOTABLE><RESOURCE></VOTABLE>".into(), ""),
    ] {
        match read(text.as_bytes(), 10) {
            Err(TapError::Malformed { message }) => assert!(message.contains(why), "{text}: {message}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(matches!(read(b"<VOTABLE>\xff</VOTABLE>", 10), Err(TapError::Malformed { .. })));
}

#[test]
fn bits_are_packed_also_in_an_array_of_any_length() {
    // One array of eleven bits, 10110011 101 and five to fill the byte, then one of no bits (VOTable 1.4, section 6).
    let text = document(
        "<TABLE><FIELD name='a' datatype='bit' arraysize='*'/><DATA><BINARY><STREAM encoding='base64'>AAAAC7OgAAAAAA==\
         </STREAM></BINARY></DATA></TABLE>",
    );
    let [t, f] = [true, false];
    assert_eq!(
        read(text.as_bytes(), 10).unwrap().table.unwrap().rows,
        [[json!([t, f, t, t, f, f, t, t, t, f, t])], [json!(null)]]
    );
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    let text = document(
        "<TABLE><FIELD name='a' datatype='double' arraysize='1000x*'/><DATA><BINARY><STREAM encoding='base64'>/////w==\
         </STREAM></BINARY></DATA></TABLE>",
    );
    assert!(matches!(read(text.as_bytes(), 10), Err(TapError::Malformed { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever arrives, it is read or refused; nothing panics and nothing is allocated without bytes behind it.
    #[test]
    fn a_damaged_document_is_read_or_refused(
        which in 0..3_usize,
        changes in proptest::collection::vec((0..4000_usize, any::<u8>()), 1..6),
        cut in 0..4000_usize,
    ) {
        let name = ["dachs-td.xml", "dachs-binary.xml", "dachs-b2.xml"][which];
        let path = format!("{}/tests/golden/votable/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut bytes = std::fs::read(path).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut);
        }
        let _ = read(&bytes, 100);
    }

    /// Random bytes under every datatype and shape.
    #[test]
    fn a_random_stream_is_read_or_refused(
        datatype in prop::sample::select(vec![
            "boolean", "bit", "unsignedByte", "short", "int", "long", "char", "unicodeChar", "float", "double",
            "floatComplex", "doubleComplex",
        ]),
        arraysize in prop::sample::select(vec!["", "1", "0", "3", "*", "7*", "2x3", "2x*", "0x*", "3x0"]),
        encoding in prop::sample::select(vec!["BINARY", "BINARY2"]),
        stream in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        use base64::Engine as _;
        let stream = base64::engine::general_purpose::STANDARD.encode(stream);
        let text = document(&format!(
            "<TABLE><FIELD name='a' datatype='{datatype}' arraysize='{arraysize}'/><DATA><{encoding}>
             <STREAM encoding='base64'>{stream}</STREAM></{encoding}></DATA></TABLE>"
        ));
        let _ = read(text.as_bytes(), 100);
    }
}

fn document(resource: &str) -> String {
    format!(
        "<?xml version='1.0'?><VOTABLE version='1.4'><RESOURCE type='results'>{resource}</RESOURCE></VOTABLE>"
    )
}

fn table(rows: &str) -> String {
    format!("<TABLE><FIELD name='a' datatype='int'/><DATA><TABLEDATA>{rows}</TABLEDATA></DATA></TABLE>")
}
