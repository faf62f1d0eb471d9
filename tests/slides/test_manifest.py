from pathlib import Path

import pytest

from tests.slides.dicoms import write_dicom
from tests.slides.tiffs import noise
from wsi_idc.core.errors import DataError
from wsi_idc.slides.manifest import ManifestRow, find_slides, read_manifest, rows_from_files


def manifest(folder: Path, text: str) -> Path:
    path = folder / "slides.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_manifest_with_all_columns(tmp_path):
    path = manifest(tmp_path, "slide,patient,mpp\na/S1.svs,P1,0.5\n/b/S2.tif,P2,\n")
    assert read_manifest(path) == [
        ManifestRow(tmp_path / "a/S1.svs", "P1", 0.5),
        ManifestRow(Path("/b/S2.tif"), "P2", None),
    ]


def test_masks_and_annotations_are_beside_the_manifest(tmp_path):
    path = manifest(tmp_path, "wsi,mask,annotations\na.svs,m/a.png,/b/a.geojson\nb.svs,,\n")
    assert read_manifest(path) == [
        ManifestRow(
            tmp_path / "a.svs", "a", None, tmp_path / "m/a.png", annotations=Path("/b/a.geojson")
        ),
        ManifestRow(tmp_path / "b.svs", "b", None),
    ]


def test_patient_defaults_to_the_name_of_the_file(tmp_path):
    path = manifest(tmp_path, "slide\na/S1.svs\nS2.ome.tif\n")
    rows = read_manifest(path)
    assert [(row.patient, row.mpp) for row in rows] == [("S1", None), ("S2.ome", None)]
    path = manifest(tmp_path, "patient,slide\n,S1.svs\nP2,S2.svs\n")
    assert [row.patient for row in read_manifest(path)] == ["S1", "P2"]


def test_csv_of_spreadsheets_is_read(tmp_path):
    text = '\ufeffslide, patient ,mpp\r\n"a, b.svs" , P1 , 0.25 \r\nc.svs\r\n,,\r\n\r\n'
    assert read_manifest(manifest(tmp_path, text)) == [
        ManifestRow(tmp_path / "a, b.svs", "P1", 0.25),
        ManifestRow(tmp_path / "c.svs", "c", None),
    ]
    for text in (
        "Slide;PATIENT;site\na.svs;007;x\nb.svs;NA\n",
        "slide\tpatient\na.svs\t007\nb.svs\tNA\n",
    ):
        rows = read_manifest(manifest(tmp_path, text))
        assert [(row.slide.name, row.patient) for row in rows] == [
            ("a.svs", "007"),
            ("b.svs", "NA"),
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the column slide; has ''"),
        ("slide\n", "lists no slide"),
        ("patient\nP1\n", "needs the column slide; has 'patient'"),
        ("slides\nS1.svs\n", "needs the column slide; has 'slides'"),
        ("slide,Patient_id\nS1.svs,P\n", "unknown column 'patient_id'; did you mean 'patient'?"),
        ("slide,slide\na,b\n", "has the column 'slide' twice"),
        ("slide,wsi\na,b\n", "has the column 'slide' twice"),
        ("slide,annotation\na,b\n", "did you mean 'annotations'?"),
        ("slide,mpp\nS1.svs,\nS2.svs,half\n", "line 3: mpp 'half' is not a number"),
        ("slide,mpp\nS1.svs,0\n", "line 2: mpp '0' is impossible"),
        ("slide,mpp\nS1.svs,nan\n", "line 2: mpp 'nan' is impossible"),
        ("slide,mpp\nS1.svs,500\n", "line 2: mpp '500' is impossible"),
        ("slide,patient\nS1.svs,../x\n", "line 2: '../x' cannot be a patient id"),
        ("slide\na/.svs\n", "line 2: '.svs' cannot be a patient id"),
        ("slide,patient\n,P1\n", "line 2: the column slide has no file name"),
        ("slide\na/S1.svs\n\nb/S1.tif\n", "line 4: patient 'S1' also has a slide 'S1' on line 2"),
        ("slide,patient\na.svs,P\nb/../a.svs,Q\n", "b/../a.svs is also on line 2; list each"),
        ("slide,patient\na.svs,P\n.b.svs,P\n", "line 3: '.b' cannot be a slide name"),
        ("slide,mpp\na,b.svs,0.5\n", "line 2: 3 cells, but 2 column names; put quotation marks"),
    ],
)
def test_invalid_rows_and_columns_are_refused(tmp_path, text, message):
    path = manifest(tmp_path, text)
    with pytest.raises(DataError) as raised:
        read_manifest(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_patient_with_several_slides_has_a_map_of_each(tmp_path):
    path = manifest(tmp_path, "slide,patient\na/S1.svs,P1\nS2.svs,P2\nb/S3.ome.tif,P1\n")
    rows = read_manifest(path)
    assert [row.map_name for row in rows] == ["P1/S1", "P2", "P1/S3.ome"]
    assert [row.slide_name for row in rows] == ["S1", "S2", "S3.ome"]


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.csv: no such file"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"not a readable CSV"):
        read_manifest(tmp_path)
    path = tmp_path / "slides.csv"
    path.write_bytes(b"slide\n\xff\xfe\x00\n")
    with pytest.raises(DataError, match=r"slides.csv: not a readable CSV"):
        read_manifest(path)
    path.write_bytes(b"slide\na\0b\n")
    with pytest.raises(DataError, match=r"slides.csv"):
        read_manifest(path)


def test_slide_files_are_rows_named_after_the_files():
    paths = [Path("one/a.svs"), Path("b.ome.tif")]
    assert [row.patient for row in rows_from_files(paths)] == ["a", "b.ome"]
    with pytest.raises(DataError, match=r"one/a\.svs and two/a\.svs would both be a\.h5"):
        rows_from_files([*paths, Path("two/a.svs")])


def test_long_name_of_a_slide_needs_a_manifest():
    with pytest.raises(DataError, match=r"has over 128 bytes; .* in a --manifest$"):
        rows_from_files([Path("x" * 252 + ".tif")])


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return [folder / name for name in names]


def test_slides_of_a_folder_are_found_by_suffix(tmp_path):
    names = ["a.svs", "b/c.NDPI", "b/d.ome.tif", "m.mrxs", "x/1.dcm", "x/2.dcm", "y/1.dcm"]
    paths = files(tmp_path, *names)
    files(tmp_path, "m/Data0000.dat", "mask.png", "photo.jpg", "._a.svs", "list.csv", "x/DICOMDIR")
    assert find_slides([tmp_path]) == [path for path in paths if path.name != "2.dcm"]
    assert find_slides([*paths[4:], Path("none.png")]) == [paths[4], paths[6], Path("none.png")]
    rows = rows_from_files([tmp_path])
    assert [row.patient for row in rows] == ["a", "c", "d.ome", "m", "x", "y"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no slides in this folder; slides are files that"):
        find_slides([tmp_path / "empty"])


def test_other_dicom_slides_of_a_folder_are_named(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_dicom(tmp_path / name, noise(90, 130), noise(45, 65), mpp=0.5)
    (tmp_path / "flat").mkdir()
    for name in ("a", "b", "c"):
        for path in (tmp_path / name).iterdir():
            path.rename(tmp_path / "flat" / f"{name}{path.name}")
        (tmp_path / name).rmdir()
    (tmp_path / "flat/d.dcm").write_bytes(b"not of a slide")
    assert find_slides([tmp_path]) == [tmp_path / "flat/a0.dcm"]
    assert caplog.messages == [
        f"{tmp_path / 'flat'} has DICOM files of 3 slides; only the slide of a0.dcm is used, not "
        "b0.dcm, c0.dcm: give each slide a folder of its own"
    ]
    caplog.clear()
    for path in tmp_path.glob("flat/[bc]*"):
        path.unlink()
    assert find_slides([tmp_path]) == [tmp_path / "flat/a0.dcm"]
    assert not caplog.messages


def test_folder_of_one_slide_is_a_slide_of_a_manifest(tmp_path):
    first, _, _ = files(tmp_path, "x/1.dcm", "x/2.dcm", "y.svs")
    path = manifest(tmp_path, "slide\nx\ny.svs\n")
    assert read_manifest(path)[0] == ManifestRow(first, "x", None)
    with pytest.raises(DataError, match=r"line 2: .* has 2 slides; give each slide its own row"):
        read_manifest(manifest(tmp_path, "slide\n.\n"))
