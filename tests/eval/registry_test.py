"""The registry against the class lists of public data sets."""

import pytest

from rcmed_jax.data import readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.phantoms import scenes
from rcmed_jax.eval import task_table, wordforms
from rcmed_jax.eval.registry import UNKNOWN, Registry
from rcmed_jax.eval.tasks import DEFAULT, Task
from rcmed_jax.ingest.volumes import windows

CT, MR = "computed tomography", "magnetic resonance"

# The nine modalities of the paper, as the release's file names have them.
PAPER = (
  *("ct", "mr", "x", "ultrasound", "pet", "pathology", "dermoscopy"),
  *("endoscopy", "fundus"),
)
PAPER_TASKS = 165

# The class maps of TotalSegmentator 2, "total" and "total_mr", without the
# numbered vertebrae and ribs.
TOTAL = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas
adrenal_gland_right adrenal_gland_left lung_upper_lobe_left
lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right
lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum
colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum
vertebrae_S1 heart aorta pulmonary_vein brachiocephalic_trunk
subclavian_artery_right subclavian_artery_left common_carotid_artery_right
common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right
atrial_appendage_left superior_vena_cava inferior_vena_cava
portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right
iliac_vena_left iliac_vena_right humerus_left humerus_right scapula_left
scapula_right clavicula_left clavicula_right femur_left femur_right hip_left
hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right
gluteus_medius_left gluteus_medius_right gluteus_minimus_left
gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left
iliopsoas_right brain skull sternum costal_cartilages
"""
TOTAL_MR = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas
adrenal_gland_right adrenal_gland_left lung_left lung_right esophagus
small_bowel duodenum colon urinary_bladder prostate sacrum vertebrae
intervertebral_discs spinal_cord heart aorta inferior_vena_cava
portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right
iliac_vena_left iliac_vena_right humerus_left humerus_right scapula_left
scapula_right clavicula_left clavicula_right femur_left femur_right hip_left
hip_right gluteus_maximus_left gluteus_maximus_right gluteus_medius_left
gluteus_medius_right gluteus_minimus_left gluteus_minimus_right
autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain
"""

# Names as BiomedParse has them, and those of ten real images of the paper.
OTHER = {
  "ct": (
    *("postcava", "left upper lung lobe", "right middle lung lobe"),
    *("COVID-19 infection", "pancreas tumor", "prostate/uterus"),
    *("pulmonary embolism", "kidney cyst"),
  ),
  "mr": (
    *("left heart atrium", "right heart ventricle", "brain ventricles"),
    *("anterior hippocampus", "non-enhancing tumor", "whole brain tumor"),
    *("brain tumor edema", "lower-grade glioma", "brain_tumor"),
    "prostate transitional zone",
  ),
  "ultrasound": ("public symphysis", "brachial_plexus", "breast_cancer"),
  "pathology": ("neoplastic cells", "connective tissue cells", "gland"),
  "endoscopy": ("non-neoplastic colon polyp", "polyp"),
  "fundus": ("optic_disc", "retinal vessel"),
  "dermoscopy": ("skin_lesion", "melanoma"),
  "pet": ("lesion",),
  "x": ("pneumothorax", "lung opacity", "viral pneumonia"),
  "oct": ("cystoid macular edema",),
}


@pytest.fixture(scope="module")
def registry() -> Registry:
  return Registry.load()


def _write(folder, *lines):
  path = folder / "mine.csv"
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return path


@pytest.mark.parametrize(
  ("modality", "names"),
  [("ct", TOTAL.split()), ("mr", TOTAL_MR.split()), *OTHER.items()],
  ids=["TotalSegmentator", "TotalSegmentator MR", *OTHER],
)
def test_class_lists_are_known(registry, modality, names):
  unknown = [name for name in names if not registry.task(modality, name).known]
  assert unknown == []


def test_numbered_bones_are_known(registry):
  spine = [f"C{n}" for n in range(1, 8)] + [f"T{n}" for n in range(1, 13)]
  spine += [f"L{n}" for n in range(1, 6)]
  names = [registry.canonical(f"vertebrae_{n}", "ct") for n in spine]
  assert names == [f"vertebra {n}" for n in spine]
  ribs = [
    registry.task("ct", f"rib_{side}_{number}")
    for side in wordforms.SIDES
    for number in range(1, 13)
  ]
  assert len({rib.name for rib in ribs if rib.known and rib.side}) == 24


def test_drawn_classes_are_known(registry):
  for modality in scenes.MODALITIES:
    drawn = set()
    for seed in range(12):
      drawn |= scenes.draw(modality, (0, 0, seed), 64).masks.keys()
    unknown = [n for n in drawn if not registry.task(modality, n).known]
    assert unknown == [], modality


def test_covers_the_papers_modalities_and_its_number_of_tasks(registry):
  groups = registry.groups()["modality"]
  names = [readers.MODALITIES[word] for word in PAPER]
  assert all(len(groups[name]) >= 10 for name in names)
  assert sum(len(groups[name]) for name in names) >= PAPER_TASKS


@pytest.mark.parametrize(
  ("said", "modality", "name"),
  [
    ("GB", "ct", "gallbladder"),
    ("gall_bladder", CT, "gallbladder"),
    ("LV", "ultrasound", "left ventricle"),
    ("lv", "mri", "left ventricle"),
    ("Kidneys, LEFT", "ct", "left kidney"),
    ("lt. kidney", "ct", "left kidney"),
    ("RK", "ct", "right kidney"),
    ("tumour of the liver", "ct", "liver tumor"),
    ("oesophagus", "ct", "esophagus"),
    ("Intracranial Haemorrhage", "ct", "intracranial hemorrhage"),
    ("vertebrae", "ct", "vertebra"),
    ("Barrett's oesophagus", "endoscopy", "barrett's esophagus"),
    ("cell nuclei", "pathology", "nucleus"),
    ("ventricle", "mr", "brain ventricle"),
    ("vessels", "fundus", "retinal vessel"),
    ("vessels", "pathology", "vessel"),
  ],
)
def test_users_words(registry, said, modality, name):
  assert registry.canonical(said, modality) == name


def test_facts_of_a_task(registry):
  liver = registry.task("ct", "Liver")
  assert liver.task == Task(CT, "liver")
  assert (liver.tolerance_mm, liver.tolerance_source) == (5, "FLARE22")
  assert (liver.region, liver.kind, liver.window) == (
    "abdomen",
    "organ",
    "liver",
  )
  tumor = registry.task("ct", "kidney_tumor")
  assert (tumor.cancer, tumor.tolerance_mm) == ("kidney cancer", 1.15)
  plexus = registry.task("ultrasound", "brachial plexus")
  assert (plexus.tolerance_mm, plexus.tolerance_source) == (2, DEFAULT)
  disc = registry.task("fundus", "optic disc")
  assert (disc.tolerance_mm, disc.tolerance_source) == (None, "")
  assert registry.task("pathology", "nuclei").instances
  assert not liver.instances
  assert registry.task("ct", "left kidney").side == "left"


def test_every_line_has_what_it_needs(registry):
  for info in registry.infos:
    assert info.kind in task_table.KINDS, info
    assert info.region, info
    assert info.sources, info
    assert (info.window in windows.CT) == (info.modality == CT), info
    assert info.modality in readers.MODALITIES.values(), info
    published = info.tolerance_source not in ("", DEFAULT)
    assert not published or info.tolerance_source.isalnum(), info


def test_every_name_leads_back_to_its_task(registry):
  for info in registry.infos:
    for name in info.names:
      for form in (name, name.upper(), name.replace(" ", "_")):
        assert registry.task(info.modality, form) is info, form


def test_cancer_types_are_told_apart(registry):
  cancers = registry.groups()["cancer"]
  assert len(cancers) >= 20
  assert Task(CT, "liver tumor") in cancers["liver cancer"]
  assert Task(MR, "liver tumor") in cancers["liver cancer"]
  named = {task for tasks in cancers.values() for task in tasks}
  assert Task(CT, "liver") not in named


def test_groups_keep_the_data_sets_words(registry):
  tasks = [Task(CT, "GB"), Task(CT, "Liver_Tumor"), Task("sonar", "my thing")]
  groups = registry.groups(tasks)
  assert groups["region"] == {
    "abdomen": (Task(CT, "GB"), Task(CT, "Liver_Tumor")),
    UNKNOWN: (Task("sonar", "my thing"),),
  }
  assert groups["cancer"] == {"liver cancer": (Task(CT, "Liver_Tumor"),)}
  assert groups["modality"].keys() == {CT, "sonar"}


def test_unknown_classes_are_marked_and_have_defaults(registry):
  info = registry.task("ct", "left_flux_capacitor")
  assert not info.known
  assert (info.name, info.side) == ("left flux capacitor", "left")
  assert (info.tolerance_mm, info.tolerance_source) == (2, DEFAULT)
  assert info.window == "soft tissue"
  other = registry.task("thermography", "hot spot")
  assert (other.modality, other.tolerance_mm) == ("thermography", None)


def test_a_users_file_adds_and_replaces(registry, tmp_path):
  path = _write(
    tmp_path,
    "# mine",
    "modalities,class,sides,synonyms,abbreviations,tolerance_mm,tolerance_source",
    'ct;mr,flux capacitor,pair,"capacitor, flux",FC,0.5,our lab',
    "ct,liver,,jecur,,1,our lab",
    "ct,gut bag,,,GB,,",
    "thermography,hot spot,,,,,",
  )
  mine = Registry.load(path)
  left = mine.task("mr", "LFC")
  assert (left.name, left.tolerance_mm) == ("left flux capacitor", 0.5)
  assert mine.canonical("capacitor flux left", "ct") == "left flux capacitor"
  liver = mine.task("ct", "jecur")
  assert (liver.name, liver.tolerance_mm) == ("liver", 1)
  assert not mine.task("ct", "hepatic parenchyma").known  # replaced as a whole
  assert mine.task("mr", "liver").tolerance_mm == 5  # another task
  assert mine.canonical("GB", "ct") == "gut bag"
  assert mine.task("ct", "gallbladder").abbreviations == ()
  assert mine.canonical("GB", "mr") == "gallbladder"
  assert mine.task("thermography", "hot spots").known
  assert len(mine.infos) == len(registry.infos) + 4 + 2
  everything = {info.task for info in mine.infos}
  assert len(everything) == len(mine.infos)


HEAD = "class,modalities,sides,tolerance_mm,kind,instances,synonyms"


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ((), "columns: holds no line"),
    (("class,modality", "a,ct"), "line 1: columns: 'modality'.*'modalities'"),
    (("class", "a"), "line 1: columns: 'modalities' is missing"),
    (("class,class,modalities", "a,a,ct"), "line 1: columns: one comes twice"),
    ((HEAD, "a,ct"), "line 2: fields: expected 7.*received 2"),
    ((HEAD, ",ct,,,,,"), "line 2: class: is empty"),
    ((HEAD, "a,,,,,,"), "line 2: modalities: is empty"),
    (
      (HEAD, "# x", "a,utrasound,,,,,"),
      "line 3: modalities: 'utrasound'.*'ultrasound'",
    ),
    ((HEAD, "a,ct,both,,,,"), "line 2: sides: expected one of pair"),
    ((HEAD, "left a,ct,pair,,,,"), "line 2: sides: .*has a side already"),
    ((HEAD, "a,ct,,-1,,,"), "line 2: tolerance_mm: .*'-1'"),
    ((HEAD, "a,ct,,nan,,,"), "line 2: tolerance_mm: .*'nan'"),
    ((HEAD, "a,ct,,2 mm,,,"), "line 2: tolerance_mm: .*'2 mm'"),
    ((HEAD, "a,ct,,,thing,,"), "line 2: kind: expected one of organ"),
    ((HEAD, "a,ct,,,,1,"), "line 2: instances: expected one of yes"),
    (
      (HEAD, "a,ct,,,,,x", "b,ct,,,,,X"),
      "line 3: synonyms: 'X' already means 'a'.*by line 2",
    ),
    ((HEAD, "a,ct,,,,,...;"), "line 2: synonyms: '...' holds no word"),
    (
      (HEAD, "organ 7,ct,,,,,liver"),
      "line 2: names: 'liver' is itself a task.*Take it out",
    ),
  ],
)
def test_faults_say_line_field_and_remedy(tmp_path, lines, message):
  with pytest.raises(DataError, match=f"(?s)mine.csv.*{message}"):
    Registry.load(_write(tmp_path, *lines))


def test_a_file_that_is_missing_or_no_text(tmp_path):
  with pytest.raises(DataError, match=r"none\.csv: tasks: cannot be read"):
    Registry.load(tmp_path / "none.csv")
  path = tmp_path / "bytes.csv"
  path.write_bytes(b"\xff\xfe\x00class")
  with pytest.raises(DataError, match=r"bytes\.csv: tasks: cannot be read"):
    Registry.load(path)
